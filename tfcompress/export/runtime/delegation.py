"""Which ops of a file XNNPACK runs, and which the interpreter runs itself.

The interpreter shows this only through a private method, so it is read here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.files import PathOrBytes, read_tflite
from tfcompress.files.loading import UnusableFile, check_loads

_DELEGATE = "DELEGATE"


@dataclasses.dataclass(frozen=True)
class Delegation:
    """How XNNPACK takes a file on this machine's CPU.

    Attributes:
        num_partitions: Partitions of the graph that XNNPACK runs, over all signatures. One per
            signature is the best; tensors are copied at the border of every further one.
        ops_outside: Names of the ops that the delegate left to the interpreter, in graph order.
        is_fully_accelerated: Whether XNNPACK took every op, as `CompiledModel` reports it.
    """

    num_partitions: int
    ops_outside: tuple[str, ...]
    is_fully_accelerated: bool


def delegation(path_or_bytes: PathOrBytes) -> Delegation:
    """Loads a `.tflite` and reports which ops XNNPACK takes.

    A file with several signatures is judged over the subgraphs that they name. The bodies of
    control-flow ops are not searched: such an op itself stays outside the delegate.

    Args:
        path_or_bytes: Path of a `.tflite` file, or its bytes.

    Raises:
        ValueError: If it is not a TFLite file, or is truncated or damaged.
        UnusableFile: If the runtime refuses to load it (Flex ops, for instance) or crashes on it:
            a `ValueError` and a `RuntimeError`.
    """
    data = read_tflite(path_or_bytes)
    check_loads(data)
    partitions, outside = 0, []
    try:
        for entry in _with_each_entry_first(data):
            nodes = _nodes(entry)
            ours = [node for node in nodes if node["op_name"] == _DELEGATE]
            own = [node for node in nodes if node["op_name"] != _DELEGATE]
            partitions += len(ours)
            outside += ops_outside(own, ours)
        with silenced_stderr():
            fully = CompiledModel.from_buffer(data).is_fully_accelerated()
    except Exception as error:
        raise UnusableFile(
            f"Expected a .tflite that LiteRT can load. Received: one that it refuses: {error}"
        ) from error
    return Delegation(partitions, tuple(outside), fully)


def ops_outside(ops: Sequence[dict], partitions: Sequence[dict]) -> list[str]:
    """Returns the names of the `ops` that lie in none of the `partitions`.

    The runtime lists a partition as one more node with the tensors that cross its border. What
    is inside follows: walk back from its outputs until its inputs.

    Args:
        ops: Dicts with `op_name`, `inputs` and `outputs` (tensor indices).
        partitions: Dicts with `inputs` and `outputs`.
    """
    return [ops[i]["op_name"] for i in _indices_outside(ops, partitions)]


def node_names_outside(data: bytes) -> list[tuple[int, str]]:
    """`(index in the file, name)` of the ops of the first subgraph that the delegate left out."""
    nodes = _nodes(data)
    ours = [node for node in nodes if node["op_name"] == _DELEGATE]
    own = [node for node in nodes if node["op_name"] != _DELEGATE]
    return [(i, own[i]["op_name"]) for i in _indices_outside(own, ours)]


def _indices_outside(ops: Sequence[dict], partitions: Sequence[dict]) -> list[int]:
    producer = {int(t): i for i, op in enumerate(ops) for t in op["outputs"]}
    inside: set[int] = set()
    for partition in partitions:
        border = {int(t) for t in partition["inputs"]}
        pending = [int(t) for t in partition["outputs"]]
        while pending:
            tensor = pending.pop()
            op = producer.get(tensor)
            if tensor in border or op is None or op in inside:
                continue
            inside.add(op)
            pending += [int(t) for t in ops[op]["inputs"]]
    return [i for i in range(len(ops)) if i not in inside]


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discards what goes to file descriptor 2: the C++ runtime logs there and has no switch."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _nodes(data: bytes) -> list[dict]:
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    # Private in LiteRT: the public interface shows neither the ops nor which a delegate runs.
    try:
        return interpreter._get_ops_details()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected a .tflite whose tensors have names in UTF-8. Received: one with {error}. It "
            "is damaged: fetch it again, or export the model again."
        ) from error


def _with_each_entry_first(data: bytes) -> Iterator[bytes]:
    """Yields the file once per subgraph that a signature names, with that subgraph in front.

    The interpreter shows the nodes of the first subgraph only.
    """
    root = schema.Model.GetRootAs(data, 0)
    signatures = [root.SignatureDefs(i) for i in range(root.SignatureDefsLength())]
    entries = sorted({signature.SubgraphIndex() for signature in signatures} or {0})
    for entry in entries:
        if entry == 0:
            yield data
        else:
            yield _swap_subgraphs(data, entry)


def _swap_subgraphs(data: bytes, entry: int) -> bytes:
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    graphs = model.subgraphs
    graphs[0], graphs[entry] = graphs[entry], graphs[0]
    moved = {0: entry, entry: 0}
    for signature in model.signatureDefs:
        signature.subgraphIndex = moved.get(signature.subgraphIndex, signature.subgraphIndex)
    for graph in graphs:
        for op in graph.operators:
            for options in (op.builtinOptions, op.builtinOptions2):
                for field, value in vars(options).items() if options is not None else ():
                    # WHILE, IF, CALL_ONCE and composites name other subgraphs by index.
                    if "subgraph" in field.lower() and value in moved:
                        setattr(options, field, moved[value])
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
