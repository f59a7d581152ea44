"""The training of recipes/distributed.py, launched by Ray Train.

    pip install "tfcompress[ray,recipes]"
    python -m recipes.distributed_ray                             # two workers on this machine
    python -m recipes.distributed_ray --address=auto --workers=8  # on a running cluster of Ray

Ray places the workers, sets `TF_CONFIG` for each, and starts all of them again when one is lost:
each goes on from the last backup, and ends with the bits that an undisturbed training gives. What
the first worker has saved is exported by this process, which has no strategy. On several machines
`--output_dir` is a folder that all of them can read.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import app, flags

from recipes import distributed


def work(settings: dict[str, Any]) -> None:
    """One worker, in a process of its own that has run no TensorFlow yet.

    Args:
        settings: Arguments of `distributed.train` by name.
    """
    distributed.train_and_print(**{**settings, "folder": pathlib.Path(settings["folder"])})


def launch(
    workers: int, settings: dict[str, Any], restarts: int = 3, address: str | None = None
) -> None:
    """Trains on so many workers of a Ray cluster; each prints its losses and digest.

    Args:
        workers: How many; each takes a CPU.
        settings: Arguments of `distributed.train` by name; `folder` as a string.
        restarts: How often all are started again after one was lost.
        address: Of the cluster; by default one of this process is started on this machine.

    Raises:
        ImportError: Ray is not installed.
        ray.train.TrainingFailedError: A worker was lost once more.
    """
    try:
        import ray
        from ray import train
        from ray.train.tensorflow import TensorflowTrainer
    except ImportError as error:
        raise ImportError(
            'Expected Ray Train. Received: it is not installed. pip install "tfcompress[ray]"'
        ) from error
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    ray.init(address=address, **local)
    try:
        trainer = TensorflowTrainer(
            work,
            train_loop_config=settings,
            scaling_config=train.ScalingConfig(num_workers=workers),
            run_config=train.RunConfig(
                # Beside the backups, not in the user's home.
                storage_path=str(pathlib.Path(settings["folder"]) / "ray"),
                failure_config=train.FailureConfig(max_failures=restarts),
            ),
        )
        trainer.fit()
    finally:
        ray.shutdown()


def main(argv: list[str]) -> None:
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if flags.FLAGS.workers:
        settings = {"folder": str(folder), **distributed.options_of_flags()}
        launch(flags.FLAGS.workers, settings, address=flags.FLAGS.address)
    distributed.export(folder)


if __name__ == "__main__":
    distributed.define_flags()
    flags.DEFINE_string("address", None, "Of a Ray cluster; by default one is started here.")
    app.run(main)
