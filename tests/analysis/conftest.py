"""The small classifier of `tests/tools`."""

from tests.tools.conftest import model_files  # noqa: F401
