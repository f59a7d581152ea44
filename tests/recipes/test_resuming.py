"""A recipe with `--backup_dir` goes on where it was killed, and ends as an undisturbed one."""

import hashlib
import os
import signal
import threading
import time

import numpy as np
from absl import flags

from recipes import quantize
from tests.fresh import CONTEXT

_ARGUMENTS = ["--dataset=digits", "--epochs=3", "--extra_epochs=3", "--backup_steps=2"]


def _run(folder, trainings):
    """The float model and its quantized copy; killed after a backup of the n-th training."""
    quantize.define_flags()
    backups = folder / "backup"
    flags.FLAGS(["quantize", *_ARGUMENTS, f"--output_dir={folder}", f"--backup_dir={backups}"])
    if trainings:
        threading.Thread(target=_kill_after, args=(backups, trainings), daemon=True).start()
    experiment = quantize.Experiment(flags.FLAGS)
    experiment.train = tuple(array[:512] for array in experiment.train)
    model = experiment.trained(experiment.float_model(0), 0)
    digest = hashlib.sha256(b"".join(np.asarray(v).tobytes() for v in model.variables))
    (folder / "digest").write_text(digest.hexdigest())


def _kill_after(backups, trainings):
    while len(list(backups.glob("*/*.h5"))) < trainings:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _in_process(folder, trainings=0):
    folder.mkdir(exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(folder, trainings))
    process.start()
    process.join()
    return process.exitcode


def test_a_recipe_that_is_killed_twice_ends_as_an_undisturbed_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _in_process(whole) == 0
    assert _in_process(killed, trainings=1) == -signal.SIGKILL
    assert not list(killed.glob("*.keras"))
    assert _in_process(killed, trainings=2) == -signal.SIGKILL
    assert list(killed.glob("digits_*.keras"))
    assert not (killed / "digest").exists()
    assert _in_process(killed) == 0
    assert (killed / "digest").read_text() == (whole / "digest").read_text()
