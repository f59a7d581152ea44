"""A worker process: its answers are never mixed up, and nothing is left of it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.files.light import LIGHT_IMPORT
from tfcompress.files.process import WorkerProcess

WORKER = """
import json, os, signal, sys, time
for line in sys.stdin:
    job = json.loads(line)
    if "interrupt" in job:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(job.get("sleep", 0))
    if "exit" in job:
        print("the end", file=sys.stderr, flush=True)
        os._exit(job["exit"])
    print(json.dumps({"echo": job.get("say"), "number": job["number"]}), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return str(path)


def is_running(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=20):
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.02)
    return condition()


def test_jobs_are_answered_and_nothing_is_left(script):
    worker = WorkerProcess(script)
    assert worker.run({"say": 1})["echo"] == 1
    assert worker.run({"say": 2}, timeout=60)["echo"] == 2
    assert worker.folder.is_dir()
    guard = worker._guard
    worker.kill()
    assert not worker.folder.exists()
    assert worker.process.returncode == -signal.SIGKILL
    assert guard.returncode is not None


def test_an_unread_answer_is_not_taken_for_the_next(script):
    worker = WorkerProcess(script)
    # As after an exception between the write and the read.
    worker.process.stdin.write(b'{"say": "old", "number": 0}\n')
    assert worker.run({"say": "new"})["echo"] == "new"
    worker.kill()


def test_an_interrupt_kills_the_worker_that_has_a_job(script):
    worker = WorkerProcess(script)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.time()
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.run({"interrupt": True, "sleep": 60})
    finally:
        signal.signal(signal.SIGINT, previous)
    assert time.time() - start < 30
    assert worker.closed
    assert not worker.folder.exists()


def test_an_end_and_a_timeout_are_told_apart(script):
    worker = WorkerProcess(script)
    assert worker.run({"exit": 7}) is None
    assert worker.close() == "(exit code 7). End of the log: the end"
    worker = WorkerProcess(script)
    assert worker.run({"sleep": 60}, timeout=0.2) is None
    assert worker.timed_out
    assert "signal 9" in worker.close()


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_the_guard_cleans_up_after_a_process_that_was_killed(script, ended_by):
    parent = f"""
{LIGHT_IMPORT}
from tfcompress.files.process import WorkerProcess
worker = WorkerProcess({script!r})
print(worker.process.pid, worker._guard.pid, worker.folder, flush=True)
worker.run({{"sleep": 60}})
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    pid, guard, folder = process.stdout.readline().decode().split()
    assert os.path.isdir(folder)
    # The guard takes a moment to start.
    assert until(lambda: "guard.py" in pathlib.Path(f"/proc/{guard}/cmdline").read_text())
    process.send_signal(ended_by)
    process.wait()
    process.stdout.close()
    assert until(lambda: not os.path.exists(folder) and not is_running(pid))
    assert until(lambda: not is_running(guard))
