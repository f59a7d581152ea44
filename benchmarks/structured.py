"""int8 LiteRT time of a model and of itself at a fraction of its MACs, in turns.

What counts is the ratio within one round; the milliseconds are this machine's, at this hour. The
goal is 0.65 or less at half the MACs on MobileNetV2-96. Weights are random, but batch norm has
seen data, as in `benchmarks.latency`.

    python -m benchmarks.structured
    python -m benchmarks.structured --targets=0.75,0.5,0.25 --round_to=8,1

Several `--round_to` show what rounding widths to XNNPACK's tile is worth: 8 or 16 channels on ARM,
16 and more where an x86 CPU has AVX-512 or AMX. About 3 minutes on two cores.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks.latency import ARCHITECTURES, cpu_name, settle_batch_norm
from tfcompress.export import compare_latency
from tfcompress.pruning.structure import WidthOptions, shrink

_ARCHITECTURE = flags.DEFINE_string("architecture", "mobilenet_v2_1.0_96", "What to build.")
_TARGETS = flags.DEFINE_list("targets", ["0.5"], "Fractions of MACs to keep.")
_ROUND_TO = flags.DEFINE_list("round_to", ["8", "16", "32"], "What widths are multiples of.")
_RANKING = flags.DEFINE_enum("ranking", "global", ["global", "uniform"], "As for shrink.")
# --threads and --runs come with `benchmarks.latency`.


def candidates(
    model: keras.Model, targets: Sequence[float], round_to: Sequence[int], ranking: str
) -> dict[str, keras.Model]:
    """The model, and it shrunk to each target with each rounding."""
    found = {"full": model}
    for target in targets:
        for step in round_to:
            widths = WidthOptions(ranking=ranking)
            smaller = shrink(model, target_macs=target, round_to=step, widths=widths)
            left = tfc.count_macs(smaller) / tfc.count_macs(model)
            found[f"{left:.3f} of the MACs, widths of {step}"] = smaller
    return found


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    keras.utils.set_random_seed(0)
    model = ARCHITECTURES[_ARCHITECTURE.value]()
    shape = tuple(model.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, (32, *shape)).astype(np.float32)
    settle_batch_norm(model, images)
    models = candidates(
        model, [float(t) for t in _TARGETS.value], [int(r) for r in _ROUND_TO.value], _RANKING.value
    )
    print(f"CPU: {cpu_name()}\n{_ARCHITECTURE.value}, int8", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for i, (name, candidate) in enumerate(models.items()):
            files[name] = pathlib.Path(folder) / f"{i}.tflite"
            settle_batch_norm(candidate, images)
            # The converter tells of its temporary folder.
            with contextlib.redirect_stdout(io.StringIO()):
                report = tfc.export_tflite(candidate, files[name], calibration_data=images)
            print(
                f"  {name}: {tfc.count_macs(candidate):,} MACs, {report.num_bytes:,} bytes, "
                f"{report.num_partitions} XNNPACK partition(s)",
                flush=True,
            )
        for threads in flags.FLAGS.threads:
            print(compare_latency(files, int(threads), flags.FLAGS.runs, reference="full"))


if __name__ == "__main__":
    app.run(main)
