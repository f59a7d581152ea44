"""The summary of a `.tflite`: frozen records, and the figures derived from them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class TensorSummary:
    """One tensor of one subgraph.

    Attributes:
        name: The converter's name for it.
        subgraph: Index of its subgraph.
        index: Its index there, which ops refer to.
        dtype: Lower-case type as stored: `"int8"`, `"int4"`, `"float32"`, …
        shape: Its shape; -1 where the file leaves a dimension open.
        buffer: Index of the buffer with its values; 0 where it has none.
        num_bytes: Bytes of its values in the file; 0 where it is not constant.
        scales: Its quantization scales: none, one, or one per channel.
        zero_points: As many zero points.
        quantized_axis: The channel axis where there are several scales, else `None`.
        is_constant: Whether the file holds its values.
        is_used: Whether any op reads or writes it.
        size: Number of values, or `None` with open dimensions.
        non_zeros: How many values are not zero (not at the zero point); `None` if not constant.
        num_distinct: How many different stored values (codes) there are; `None` if not constant.
    """

    name: str
    subgraph: int
    index: int
    dtype: str
    shape: tuple[int, ...]
    buffer: int
    num_bytes: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_axis: int | None
    is_constant: bool
    is_used: bool
    size: int | None
    non_zeros: int | None
    num_distinct: int | None

    @property
    def sparsity(self) -> float | None:
        """Fraction of exact zeros in 0..1; `None` if the tensor is not constant."""
        if self.non_zeros is None or not self.size:
            return None
        return 1.0 - self.non_zeros / self.size


@dataclasses.dataclass(frozen=True)
class OpSummary:
    """One op of one subgraph.

    Attributes:
        name: Builtin name (`"CONV_2D"`), `"Flex…"` for a TensorFlow op, `"CUSTOM:<code>"` else.
        subgraph: Index of its subgraph.
        inputs: Tensor indices; -1 for an input that is left out.
        outputs: Tensor indices.
        layer: What it comes from, as far as the converter's names tell.
        constant_bytes: Bytes of its constant inputs; a buffer that several ops read is counted
            at the first of them, so the sum over ops counts every byte once.
    """

    name: str
    subgraph: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: str
    constant_bytes: int


@dataclasses.dataclass(frozen=True)
class SignatureSummary:
    """One signature: its key, its subgraph, and its tensors by the signature's own names."""

    key: str
    subgraph: int
    inputs: Mapping[str, TensorSummary]
    outputs: Mapping[str, TensorSummary]


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """What `inspect_tflite` found.

    Attributes:
        num_bytes: Size of the file.
        gzip_bytes: Its size under gzip, level 9.
        sha256: Its hash, in hexadecimal.
        num_subgraphs: Number of subgraphs.
        ops: All ops, subgraph by subgraph, in execution order.
        tensors: All tensors, subgraph by subgraph.
        signatures: All signatures.
        min_runtime_version: Oldest runtime that has all its ops, as the converter wrote it.
    """

    num_bytes: int
    gzip_bytes: int
    sha256: str
    num_subgraphs: int
    ops: tuple[OpSummary, ...]
    tensors: tuple[TensorSummary, ...]
    signatures: tuple[SignatureSummary, ...]
    min_runtime_version: str | None

    @property
    def op_counts(self) -> dict[str, int]:
        """Op name → how many, most frequent first."""
        return dict(collections.Counter(op.name for op in self.ops).most_common())

    @property
    def constants(self) -> tuple[TensorSummary, ...]:
        """The tensors whose values are in the file."""
        return tuple(tensor for tensor in self.tensors if tensor.is_constant)

    @property
    def float_tensors(self) -> tuple[TensorSummary, ...]:
        """The floating-point tensors that some op reads or writes. Full int8 has none."""
        return tuple(t for t in self.tensors if t.dtype in _FLOATS and t.is_used)

    @property
    def flex_ops(self) -> tuple[str, ...]:
        """Names of the ops that need TensorFlow in the app; LiteRT alone refuses them."""
        return tuple(sorted({op.name for op in self.ops if op.name.startswith("Flex")}))

    def constant_num_bytes(self, subgraph: int | None = None) -> int:
        """Bytes of the constants of one subgraph, or of the file; a shared buffer counts once."""
        chosen = (t for t in self.constants if subgraph is None or t.subgraph == subgraph)
        return sum({t.buffer: t.num_bytes for t in chosen}.values())

    @property
    def shared_buffers(self) -> dict[int, tuple[TensorSummary, ...]]:
        """Buffer index → its tensors, for the buffers that several tensors share."""
        users = collections.defaultdict(list)
        for tensor in self.constants:
            users[tensor.buffer].append(tensor)
        return {buffer: tuple(found) for buffer, found in users.items() if len(found) > 1}

    @property
    def layer_bytes(self) -> dict[str, int]:
        """Layer → bytes of the constants of its ops, largest first; zero bytes left out."""
        total = collections.Counter()
        for op in self.ops:
            total[op.layer] += op.constant_bytes
        return {layer: count for layer, count in total.most_common() if count}

    def tensor(self, index: int, subgraph: int = 0) -> TensorSummary:
        """Returns the tensor that an op of `subgraph` calls `index`."""
        for tensor in self.tensors:
            if (tensor.subgraph, tensor.index) == (subgraph, index):
                return tensor
        raise ValueError(f"Expected a tensor of the file. Received: {index=}, {subgraph=}")

    def as_dict(self) -> dict:
        """Returns everything, derived figures too, as values that `json.dumps` takes."""
        result = dataclasses.asdict(self)
        for tensor, entry in zip(self.tensors, result["tensors"], strict=True):
            entry["sparsity"] = tensor.sparsity
        for name in ("op_counts", "flex_ops", "layer_bytes"):
            result[name] = getattr(self, name)
        result["float_tensors"] = [tensor.name for tensor in self.float_tensors]
        result["shared_buffers"] = [
            [tensor.name for tensor in users] for users in self.shared_buffers.values()
        ]
        return result

    def __str__(self) -> str:
        from tfcompress.export.flatbuffer.tables import render_summary

        return render_summary(self)
