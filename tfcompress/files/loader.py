"""Loads `.tflite` files in processes of their own: run as a script, one job per line of input.

LiteRT trusts a file: some damaged ones end its process. A job is {"path", "memory", "seconds",
"number"}; the file is loaded and every signature runs once, on zeros, in a fork of this process,
which may take `memory` bytes beyond what it has, and so many seconds. The answer is {"number"} with
{"ok": true}, {"error": text}, or {"signal": the number of the signal that ended it}. The script
imports LiteRT and nothing of tfcompress or TensorFlow.
"""

import contextlib
import json
import os
import signal
import sys

if __name__ == "__main__":
    # A script's own folder comes first on the path: its modules must not hide others of their
    # names.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
    # A fork has one thread.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    for _name in ("tensorflow", "keras"):
        sys.modules[_name] = None  # type: ignore[assignment]


def load(path: str) -> None:
    """Loads a file, plans its memory and runs each signature once.

    A run that ends with an exception is none of a damaged file: zeros may be no valid input.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    with contextlib.suppress(Exception):
        signatures = interpreter.get_signature_list()
        if not signatures:
            interpreter.invoke()
        for key in signatures:
            runner = interpreter.get_signature_runner(key)
            details = runner.get_input_details()
            runner(**{name: np.zeros(d["shape"], d["dtype"]) for name, d in details.items()})
    with contextlib.suppress(Exception):
        # The second interface, which tells whether XNNPACK takes every operator.
        from ai_edge_litert.compiled_model import CompiledModel

        CompiledModel.from_file(path).is_fully_accelerated()


def _limit_memory(more: int) -> None:
    """Lets the process take `more` bytes of addresses beyond those that it has."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # Not on every platform.
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def load_in_fork(job: dict) -> dict:
    """Loads the file of a job in a fork and tells how that went."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # No exception may return from here: there would be two of this process.
        try:
            os.close(reading)
            # The signal ends the process, in whatever code it is.
            signal.setitimer(signal.ITIMER_REAL, job["seconds"])
            _limit_memory(job["memory"])
            error = ""
            try:
                load(job["path"])
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
            os.write(writing, error.encode("utf-8", "replace")[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        error = pipe.read().decode("utf-8", "replace")
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"error": error} if error else {"ok": True}


def main() -> None:
    # The runtime may print, so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy  # noqa: F401
    from ai_edge_litert.compiled_model import CompiledModel  # noqa: F401
    from ai_edge_litert.interpreter import Interpreter  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        answer = load_in_fork(job)
        print(json.dumps({**answer, "number": job["number"]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
