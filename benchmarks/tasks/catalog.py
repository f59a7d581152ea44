"""All nets, in the order in which they are trained."""

from __future__ import annotations

from benchmarks.tasks import audio, classifiers, detection, images, transformers
from benchmarks.tasks.task import Task

_MODULES = (audio, transformers, images, detection, classifiers)

#: Name → net.
TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}
