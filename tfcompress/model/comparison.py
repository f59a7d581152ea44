"""Two inventories side by side: what each layer was, and what compression has made of it."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.inventory import Inventory, LayerRow, inventory
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.paths import layer_paths
from tfcompress.model.transforms import TransformedWeights
from tfcompress.tables import Printable, render_table


@dataclasses.dataclass(frozen=True)
class Comparison(Printable):
    """A model before and after. Print it.

    Attributes:
        before: Inventory of the one.
        after: Inventory of the other.
        gzip_before: Layer → bytes of its weights, gzipped: kernels of 8 bits or fewer as codes of
            one byte, everything else as float32.
        gzip_after: The same of the other.
        packed: Layer → bytes in a packed file; empty where none was given.
    """

    before: Inventory
    after: Inventory
    gzip_before: Mapping[str, int]
    gzip_after: Mapping[str, int]
    packed: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """Layers with weights, in the order of the model after."""
        after = [row.name for row in self.after.rows]
        return [*after, *(row.name for row in self.before.rows if row.name not in after)]

    def bits(self, name: str) -> float | None:
        """Bits per weight after: those in the packed file, else log₂ of the distinct values."""
        row = _find(self.after, name)
        if row is None or not row.parameters:
            return None
        if name in self.packed:
            return 8 * self.packed[name] / row.parameters
        return math.log2(row.distinct) if row.kernel and row.distinct else 32.0

    def __str__(self) -> str:
        cells = [self._cells(name) for name in self.names]
        total = self.before.total, self.after.total
        gzips = sum(self.gzip_before.values()), sum(self.gzip_after.values())
        packed = sum(self.packed.values()) if self.packed else None
        cells.append(("total", *_pairs(*total, *gzips, distinct=False), None, packed))
        heads = ("layer", "parameters", "non-zeros", "distinct", "raw bytes", "gzip", "MACs")
        title = "Before → after"
        return render_table(title, (*heads, "bits each", "packed"), cells, width=160)

    def _cells(self, name: str) -> tuple:
        before, after = _find(self.before, name), _find(self.after, name)
        gzips = self.gzip_before.get(name), self.gzip_after.get(name)
        bits = self.bits(name)
        shown = None if bits is None else f"{bits:.2f}"
        return (name, *_pairs(before, after, *gzips), shown, self.packed.get(name))


def compare_models(
    before: keras.Model, after: keras.Model, *, packed: Mapping[str, int] | None = None
) -> Comparison:
    """Sets the inventories of two models side by side, layer by layer.

    Args:
        before: A built model.
        after: The compressed model; layers are matched by name, also where those of nested models
            are now one model's.
        packed: Layer → bytes in a packed file, as `PackReport.layer_bytes()` gives them; what is
            inside a layer (the cells of a wrapper) counts as the layer's.
    """
    first, second = inventory(before), inventory(after)
    names = _new_names([row.name for row in first.rows], [row.name for row in second.rows])
    rows = tuple(dataclasses.replace(row, name=names[row.name]) for row in first.rows)
    gzip_before = {names.get(name, name): size for name, size in _gzip_bytes(before, first).items()}
    held: dict[str, int] = {}
    for path, size in (packed or {}).items():
        outer = (row.name for row in second.rows if f"/{row.name}/" in f"/{path}/")
        name = path if path in names.values() else next(outer, path)
        held[name] = held.get(name, 0) + size
    gzip_after = _gzip_bytes(after, second)
    return Comparison(Inventory(rows), second, gzip_before, gzip_after, held)


def _new_names(before: Sequence[str], after: Sequence[str]) -> dict[str, str]:
    """Name or path before → the name after: of `"left/conv"`, `"left_conv"` or, once, `"conv"`."""
    names = {name: name for name in before}
    free = [name for name in after if name not in names]
    for rule in (lambda path: path.replace("/", "_"), lambda path: path.rpartition("/")[2]):
        for path in before:
            if names[path] not in after and rule(path) in free:
                names[path] = rule(path)
                free.remove(rule(path))
    return names


def _find(rows: Inventory, name: str) -> LayerRow | None:
    return next((row for row in rows.rows if row.name == name), None)


def _pairs(
    before: LayerRow | None,
    after: LayerRow | None,
    gzip_before: int | None,
    gzip_after: int | None,
    distinct: bool = True,
) -> list[str]:
    def of(row: LayerRow | None, field: str) -> int | None:
        return None if row is None else getattr(row, field)

    fields = ["parameters", "nonzeros", "distinct"]
    pairs = [(of(before, f), of(after, f)) for f in fields]
    if not distinct:
        pairs[2] = (None, None)
    raw = [None if row is None else row.bytes for row in (before, after)]
    pairs += [(raw[0], raw[1]), (gzip_before, gzip_after), (of(before, "macs"), of(after, "macs"))]
    return [_arrow(*pair) for pair in pairs]


def _arrow(before: int | None, after: int | None) -> str:
    left, right = ("–" if n is None else f"{n:,}" for n in (before, after))
    return left if left == right else f"{left} → {right}"


def _gzip_bytes(model: keras.Model, rows: Inventory) -> dict[str, int]:
    """Layer → bytes of its weights in the forward pass, deflated."""
    paths, found = layer_paths(model), {}
    inside = {
        id(v)
        for layer in iterate_layers(model)
        if isinstance(layer, TransformedWeights)
        for v in layer.weights
    }
    for layer in iterate_layers(model):
        variables = [v for v in layer.weights if id(v) not in inside]
        inside.update(id(v) for v in variables if not isinstance(layer, keras.Model))
        if not variables or isinstance(layer, keras.Model):
            continue
        effective = layer.effective_weights() if is_compressed(layer) else {}
        name = paths[id(layer)]
        row = _find(rows, name)
        is_coded = row is not None and row.bits <= 8
        data = b"".join(
            _codes(np.asarray(effective[v.name], np.float32))
            if is_coded and v.name in effective
            else np.asarray(effective.get(v.name, v.numpy()), np.float32).tobytes()
            for v in variables
        )
        found[name] = len(zlib.compress(data, 6))
    return found


def _codes(kernel: np.ndarray) -> bytes:
    """A quantized kernel as a byte per weight and its scales.

    A code is the rank of its value among those of its output channel, or of the kernel where they
    share one scale.
    """
    if len(np.unique(kernel)) <= 256:
        return np.unique(kernel, return_inverse=True)[1].astype(np.uint8).tobytes() + bytes(4)
    rows = kernel.reshape(-1, kernel.shape[-1]).T
    ranks = [np.unique(row, return_inverse=True)[1] % 256 for row in rows]
    scales = np.abs(rows).max(1).astype(np.float32)
    return np.stack(ranks).astype(np.uint8).tobytes() + scales.tobytes()
