"""The registry as a table, for `docs/operators.md`.

python -m tfcompress.quantization.operators.table > docs/operators.md
"""

from __future__ import annotations

from collections.abc import Callable

from tfcompress.quantization.operators import catalog  # noqa: F401
from tfcompress.quantization.operators.registry import OperatorSpec, Role, registered

_HEAD = """# Operators in int8

What LiteRT's int8 runtime does at each Keras layer, activation function and `keras.ops` operation
that `quantize` knows; a [custom layer](custom-layers.md) joins them. What is not listed stays in
float, and `tfc.plan` names it. The table is that of the registry in
`tfcompress/quantization/operators`, and a test holds it true.

*Rounding* says where codes are rounded. An operator of several *parts* is decomposed before
training into operators with one rounding each. One with a *form* is written to the file in other
TensorFlow operations than Keras', which the runtime runs exactly and fast. *16 bits* marks what
runs on [16-bit activations](low-bits.md#16-bit-activations).

| operators | rounding | parts | form | 16 bits |
|---|---|---|---|---|
"""
_ROUNDING = {
    Role.KERNEL: "int32 sum, bias and fused ReLU, then once",
    Role.PRODUCT: "int32 sum, then once",
    Role.AFFINE: "int32 sum per channel and fused ReLU, then once",
    Role.ARITHMETIC: "once, with a ReLU behind it",
    Role.AVERAGE: "once",
    Role.RELU: "with the operator before it, else once",
    Role.ELEMENTWISE: "once",
    Role.FIXED: "once",
    Role.MOVE: "none: codes are moved",
    Role.RESAMPLE: "to the codes of its input",
    Role.JOIN: "none: its inputs share one range",
    Role.SELECT: "none: codes are chosen",
}


def operator_table() -> str:
    """The page, as Markdown; operators of one entry share a row."""
    rows: dict[int, tuple[OperatorSpec, list[str]]] = {}
    for name, spec in sorted(registered().items()):
        if name.startswith(("layers.", "ops.", "activations.")):
            rows.setdefault(id(spec), (spec, []))[1].append(name)
    lines = [_row(spec, names) for spec, names in rows.values()]
    return _HEAD + "\n".join(lines) + "\n"


def _row(spec: OperatorSpec, names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names)
    cells = (shown, _rounding(spec), _parts(spec), _first_line(spec.lower), _int16(spec))
    return f"| {' | '.join(cells)} |"


def _rounding(spec: OperatorSpec) -> str:
    if spec.function is not None:
        return "that of its function"
    if spec.fixed_range is not None:
        low, high = spec.fixed_range
        return f"once, to the range {low:g} … {high * 256:g}/256"
    if spec.role is None:
        return "in its parts"
    return _ROUNDING[spec.role] if isinstance(spec.role, Role) else "by its options"


def _parts(spec: OperatorSpec) -> str:
    parts = _first_line(spec.decompose)
    if spec.fused_activations is not None:
        parts = "; ".join(filter(None, [parts, "an activation other than ReLU"]))
    return parts


def _int16(spec: OperatorSpec) -> str:
    if spec.function is not None:
        return "that of its function"
    if isinstance(spec.int16, bool):
        return "yes" if spec.int16 else ""
    return "by its options"


def _first_line(function: Callable | None) -> str:
    """What a rule or form says of itself."""
    if function is None:
        return ""
    return (function.__doc__ or "yes").strip().partition("\n")[0].rstrip(".:")


if __name__ == "__main__":
    print(operator_table(), end="")
