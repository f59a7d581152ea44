"""The worker process: refusals and crashes are errors with their cause, never a hang."""

import os
import signal
import stat
import sys

import pytest
import tensorflow as tf

from tfcompress.export.conversion import converter as module
from tfcompress.export.conversion.converter import (
    ConversionError,
    Converter,
    current_converter,
    shared_converter,
)
from tfcompress.export.lowering.lower import Lowered


def lowered(function=lambda x: {"y": x + 1.0}):
    specs = [tf.TensorSpec((1, 4), tf.float32, name="x")]
    return Lowered(function, specs, float_outputs=["y"], float_inputs=["x"])


def test_an_exception_is_reported_and_the_worker_goes_on():
    with Converter() as converter:

        def no_kernel(x):
            return {"y": tf.linalg.inv(tf.reshape(x, (2, 2)))}

        with pytest.raises(ConversionError, match=r"(?s)refused 'main'.*MatrixInverse"):
            converter.convert({"main": lowered(no_kernel)})
        process = converter._worker.process
        assert process.poll() is None
        data = converter.convert({"main": lowered()})
        assert data[4:8] == b"TFL3"
        assert converter._worker.process is process
    assert process.poll() is not None


def fake_worker(tmp_path, monkeypatch, body):
    """A worker that needs no TensorFlow and does what `body` says on its first job."""
    script = tmp_path / "worker.py"
    script.write_text(f"import os, signal, sys\nline = sys.stdin.readline()\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(module.worker, "__file__", str(script))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "print('the end of the log', file=sys.stderr, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGSEGV)",
            rf"crashed on 'main' \(signal {int(signal.SIGSEGV)}\).*the end of the log",
        ),
        ("sys.exit(7)", r"crashed on 'main' \(exit code 7\)"),
    ],
    ids=["signal", "exit"],
)
def test_a_crash_is_reported_and_the_next_conversion_gets_a_new_worker(
    body, message, tmp_path, monkeypatch
):
    with Converter() as converter:
        with monkeypatch.context() as patch:
            fake_worker(tmp_path, patch, body)
            with pytest.raises(ConversionError, match=message):
                converter.convert({"main": lowered()})
        assert converter._worker is None
        assert converter.convert({"main": lowered()})[4:8] == b"TFL3"


def test_a_file_that_crashes_litert_is_an_error_and_not_a_crash(tmp_path, monkeypatch):
    """LiteRT aborts the process on some files; here a worker does so on every file it loads."""
    body = (
        "import json\n"
        "job = json.loads(line)\n"
        "assert open(job['load'], 'rb').read() == b'a file'\n"
        "print('Fatal: tensor arena', file=sys.stderr, flush=True)\n"
        "os.abort()"
    )
    with Converter() as converter:
        with monkeypatch.context() as patch:
            fake_worker(tmp_path, patch, body)
            with pytest.raises(
                ConversionError,
                match=rf"LiteRT crashed .*signal {int(signal.SIGABRT)}\).*Fatal: tensor arena",
            ):
                converter.check_loads(b"a file", "main")
        assert converter._worker is None


def test_a_sound_file_loads_and_an_exception_is_left_to_the_caller():
    with Converter() as converter:
        data = converter.convert({"main": lowered()})
        process = converter._worker.process
        converter.check_loads(data, "main")
        converter.check_loads(b"no flatbuffer", "main")
        assert converter._worker.process is process
        assert process.poll() is None


def test_a_worker_that_died_between_two_jobs_is_reported():
    with Converter() as converter:
        converter.check_loads(b"no flatbuffer", "main")
        os.kill(converter._worker.process.pid, signal.SIGKILL)
        converter._worker.process.wait()
        with pytest.raises(ConversionError, match=r"signal 9"):
            converter.convert({"main": lowered()})


def test_one_worker_is_shared_inside_the_with(monkeypatch):
    # Apart from the one that the tests share.
    monkeypatch.setattr(module, "_shared", [])
    with shared_converter() as outer, current_converter() as one, current_converter() as two:
        assert one is two is outer
        with shared_converter() as inner:
            assert inner is outer
        with current_converter() as three:
            assert three is outer
    with current_converter() as alone, current_converter() as another:
        assert alone is not outer
        assert another is not alone


def test_an_interrupt_leaves_a_shared_converter_that_works(tmp_path, monkeypatch):
    """Ctrl-C that a notebook catches: the next export must not read the answer of this one."""
    slow = "import time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    with Converter() as converter:
        with monkeypatch.context() as patch:
            fake_worker(tmp_path, patch, slow)
            previous = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                with pytest.raises(KeyboardInterrupt):
                    converter.check_loads(b"a file", "main")
            finally:
                signal.signal(signal.SIGINT, previous)
            interrupted = converter._worker
            assert interrupted.closed
            assert not interrupted.folder.exists()
        # Signal 9 is named where a machine has no memory left.
        body = "os.kill(os.getpid(), signal.SIGKILL)"
        with monkeypatch.context() as patch:
            fake_worker(tmp_path, patch, body)
            with pytest.raises(ConversionError, match=r"signal 9.*memory.*Nothing was written"):
                converter.check_loads(b"a file", "main")
        converter.check_loads(b"no flatbuffer", "main")


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    body = (
        "import json\n"
        "job = json.loads(line)\n"
        "error = 'OSError: [Errno 28] No space left on device'\n"
        "print(json.dumps({'error': error, 'number': job['number']}), flush=True)"
    )
    fake_worker(tmp_path, monkeypatch, body)
    with Converter() as converter:
        with pytest.raises(ConversionError, match=r"No space left.*set TMPDIR"):
            converter.convert({"main": lowered()})
        monkeypatch.setattr(
            module, "_save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        with pytest.raises(ConversionError, match=r"temporary folder '.*No space left.*TMPDIR"):
            converter.convert({"main": lowered()})
        folder = converter._worker.folder
    assert not folder.exists()


def test_a_worker_is_replaced_before_its_leaks_grow(monkeypatch, tmp_path):
    fake_worker(
        tmp_path,
        monkeypatch,
        "import json\n"
        "while line:\n"
        "    job = json.loads(line)\n"
        "    if 'output' in job:\n"
        "        open(job['output'], 'wb').write(str(os.getpid()).encode())\n"
        "    print(json.dumps({'ok': True, 'number': job['number']}), flush=True)\n"
        "    line = sys.stdin.readline()\n",
    )
    monkeypatch.setattr(module, "_JOBS_PER_WORKER", 2)
    processes = []
    with Converter() as converter:
        for _ in range(4):
            processes.append(converter.convert({"a": lowered()}))
            # The one that has converted a file loads it, too.
            converter.check_loads(b"a file", "a")
            assert converter._worker.process.pid == int(processes[-1])
    assert processes[0] == processes[1] != processes[2] == processes[3]
    assert sys.executable
