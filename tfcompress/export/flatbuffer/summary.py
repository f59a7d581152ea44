"""The summary of a `.tflite`: its records, and the figures derived from them."""

from __future__ import annotations

import collections
import dataclasses
import functools

from tfcompress.export.flatbuffer.records import OpSummary, SignatureSummary, TensorSummary
from tfcompress.export.flatbuffer.tables import render_tables

_FLOATS = ("float16", "bfloat16", "float32", "float64")


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
        total: collections.Counter[str] = collections.Counter()
        for op in self.ops:
            total[op.layer] += op.constant_bytes
        return {layer: count for layer, count in total.most_common() if count}

    def tensor(self, index: int, subgraph: int = 0) -> TensorSummary:
        """Returns the tensor that an op of `subgraph` calls `index`."""
        found = self._by_place.get((subgraph, index))
        if found is None:
            raise ValueError(f"Expected a tensor of the file. Received: {index=}, {subgraph=}")
        return found

    @functools.cached_property
    def _by_place(self) -> dict[tuple[int, int], TensorSummary]:
        return {(tensor.subgraph, tensor.index): tensor for tensor in self.tensors}

    def as_dict(self) -> dict:
        """Returns all fields and derived figures as values that `json.dumps` takes."""
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

    def render(self, width: int = 120) -> str:
        """Returns tables as plain text.

        Args:
            width: Characters to a line.
        """
        heading = (
            f"{self.num_bytes:,} bytes ({self.gzip_bytes:,} gzipped), {len(self.ops)} ops, "
            f"{self.num_subgraphs} subgraph(s), {len(self.float_tensors)} float tensors, "
            f"Flex ops: {', '.join(self.flex_ops) or 'none'}"
        )
        return render_tables(
            heading,
            self.signatures,
            self.op_counts,
            self.layer_bytes,
            self.num_bytes,
            self.tensors,
            width,
        )

    def __str__(self) -> str:
        return self.render()
