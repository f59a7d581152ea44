"""The report of an export: what is in the file, how it runs, and how it agrees with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfcompress.export.runtime.float_agreement import FloatAgreement
from tfcompress.export.runtime.metrics import Scores
from tfcompress.export.runtime.parity import Parity, lowest_agreement
from tfcompress.tables import Printable, render_table

#: Source of samples that are drawn from the ranges of the input quantizers.
SYNTHETIC = "synthetic inputs"

#: Said of a signature whose float model is not at hand.
UNKNOWN_FLOAT = (
    "Agreement of {} with the float model is not known: the quantized model was loaded from a file "
    "or has no calibration data. Pass float_model=, the model that quantize was called on."
)
#: Said where the float model was not scored.
NO_FLOAT_SCORES = (
    "What compression cost is not known, for the float model is gone or was changed since: pass "
    "float_model=, the model that quantize was called on."
)
#: Said of outputs that are far from those of the float model.
LOW_FLOAT = (
    "The outputs {} are far from those of the float model. If the model was trained since, that is "
    "meant. Else try: more calibration data, like those in use; quantize(bias_correction=True); "
    "equalize=True; activation ranges by tfcompress.LeastSquares() or Percentile(); layers in "
    "float (None in the configuration), first and last kernels and depthwise convolutions first, "
    "which print(tfcompress.plan(model)) lists; an epoch of model.fit on the quantized model."
)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One kernel in the file.

    Attributes:
        name: The Keras layer.
        num_bits: Bits of its codes; 32 for a kernel in float.
        stored: The type that holds it in the file: `"int8"`, `"int4"`, `"int2"` or `"float32"`. It
            may have more bits than the codes, which then save no byte.
        num_scales: One, or one per output channel; 0 for a kernel in float, which has none.
        smallest_scale: Of its scales.
        largest_scale: Of its scales.
        num_weights: How many weights it has.
        pruned: How many weights are zero in the model already.
        rounded_to_zero: How many more the rounding to codes made zero.
        distinct: How many different codes it uses.
    """

    name: str
    num_bits: int
    stored: str
    num_scales: int
    smallest_scale: float
    largest_scale: float
    num_weights: int
    pruned: int
    rounded_to_zero: int
    distinct: int


@dataclasses.dataclass(frozen=True)
class ExportReport(Printable):
    """What `export_tflite` found. `print` shows it as tables; `to_dict` gives its figures.

    Attributes:
        path: The file.
        num_bytes: Its size.
        gzip_bytes: Its size under gzip, which is what a phone downloads.
        float_num_bytes: Size of the same model as a float file; `None` where it was not converted
            (see `compare_float` of `export_tflite`).
        float_gzip_bytes: Likewise under gzip.
        dense_num_bytes: For a pruned model, the size of this file with its zeros; else `None`.
        dense_gzip_bytes: For a pruned model, what gzip would make of this file if its zero weights
            were like the others (see `dense_gzip_size`): what pruning saved. Else `None`.
        ops: Op name → how many.
        float_tensors: Float tensor left in the file → the Keras layer it comes from.
        flex_ops: TensorFlow ops, which LiteRT alone cannot run.
        num_partitions: Partitions of the graph that XNNPACK runs.
        fully_delegated: Whether XNNPACK takes every op.
        ops_outside: Ops that XNNPACK leaves to the interpreter.
        layers: Every kernel.
        parity: Signature → agreement with the Keras model, per output; empty where nothing was
            compared.
        verified_on: Signature → the inputs that it was compared on: `"verify_data"`,
            `"calibration data"`, `"synthetic inputs"`, or `""` for none.
        patched: Layers whose codes or scales a converter would not find by itself (fewer bits, one
            scale, codebooks, learned scales). They are in the file as they were trained.
        unverified: Layers whose int8 kernel is not in the file, because no int8 operator computes
            them there. Only `allow_float=True` writes such a file.
        sparse_layers: Layers whose zeros `sparse_encoding` left out of the file.
        signature_num_bytes: Signature → bytes of the constants it reads.
        constant_num_bytes: Bytes of all constants in the file, equal ones stored once.
        range_notes: What is suspicious in the ranges of tensors, and what to do about it: layers
            that are dead or explode, inputs and outputs with few codes, concatenations of uneven
            ranges, samples outside calibrated ranges.
        platform_notes: Where other platforms may give other codes than this one, and how far the
            file is from what a model of mixed precision predicts by itself.
        input_notes: Inputs whose Rescaling is their scale and zero point: what their codes are.
        float_agreement: Signature → agreement with the float model that it was quantized from, per
            output; `None` where that is not known, and no entry where nothing was compared or the
            model is a float model itself.
        scores: Signature, with `/output` behind it where there are several outputs → `"float
            model"`, `"Keras model"` and `"file"` → metrics against the labels of
            `verify_data=(x, y)`; empty without labels. The float model is there where it was given.
        recipe: What made the model, for `Recipe.from_dict(report.recipe).run(model, train)`; `None`
            where neither a recipe nor `search` made it.
    """

    path: str
    num_bytes: int
    gzip_bytes: int
    float_num_bytes: int | None
    float_gzip_bytes: int | None
    ops: dict[str, int]
    float_tensors: dict[str, str]
    flex_ops: tuple[str, ...]
    num_partitions: int
    fully_delegated: bool
    ops_outside: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    parity: dict[str, tuple[Parity, ...]]
    verified_on: dict[str, str]
    patched: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    dense_num_bytes: int | None = None
    dense_gzip_bytes: int | None = None
    sparse_layers: tuple[str, ...] = ()
    signature_num_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    constant_num_bytes: int = 0
    range_notes: tuple[str, ...] = ()
    platform_notes: tuple[str, ...] = ()
    input_notes: tuple[str, ...] = ()
    float_agreement: dict[str, tuple[FloatAgreement, ...] | None] = dataclasses.field(
        default_factory=dict
    )
    scores: dict[str, dict[str, Scores]] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None

    @property
    def agreement(self) -> float | None:
        """Smallest share of equal output steps over all outputs; `None` where none is compared."""
        return lowest_agreement(self.parity)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.path}\n\n", self._scores(), self._sizes(), self._constants()]
        parts += [self._runtime(), self._parity(), self._float_agreement()]
        columns = (
            *("layer", "bits", "in the file", "scales", "smallest", "largest"),
            *("weights", "pruned", "rounded to 0", "codes"),
        )
        rows = [dataclasses.astuple(layer) for layer in self.layers]
        parts.append(render_table("Kernels", columns, rows))
        return "".join(parts)

    def _scores(self) -> str:
        """What it cost: metrics of the float model, the Keras model and the file."""
        classified, regressed = [], []
        for key, found in self.scores.items():
            first = next(iter(found.values()))
            for model, s in found.items():
                if s.accuracy is not None and first.accuracy is not None:
                    change = f"{(s.accuracy - first.accuracy) * 100:+.2f} points"
                    cells = (f"{s.accuracy:.2%}", change, f"{s.f1:.4f}", s.calibration_error)
                    classified.append((key, model, *cells, s.samples))
                else:
                    errors = (s.mean_absolute_error, s.root_mean_squared_error, s.r2)
                    regressed.append((key, model, *errors, s.samples))
        text = ""
        for rows, heads in (
            (classified, ("accuracy", "change", "F1", "calibration error")),
            (regressed, ("mean abs. error", "RMSE", "R²")),
        ):
            if rows:
                columns = ("signature", "model", *heads, "samples")
                text += render_table("Against the labels of verify_data", columns, rows)
        if any("float model" not in found for found in self.scores.values()):
            text += f"{NO_FLOAT_SCORES}\n\n"
        return text

    def _sizes(self) -> str:
        rows: list[tuple] = [("this file", self.num_bytes, self.gzip_bytes)]
        if self.float_num_bytes is not None and self.float_gzip_bytes is not None:
            ratio = self.num_bytes / self.float_num_bytes
            gzip_ratio = self.gzip_bytes / self.float_gzip_bytes
            rows.insert(0, ("float", self.float_num_bytes, self.float_gzip_bytes))
            rows.append(("ratio", f"{ratio:.3f}", f"{gzip_ratio:.3f}"))
        if self.dense_gzip_bytes is not None:
            dense = (self.dense_num_bytes, self.dense_gzip_bytes)
            rows.append(("this file, were it dense", *dense))
        return render_table("Size in bytes", ("", "raw", "gzip"), rows)

    def _constants(self) -> str:
        """How many bytes several signatures share; empty for one signature."""
        if len(self.signature_num_bytes) < 2:
            return ""
        summed = sum(self.signature_num_bytes.values())
        rows: list[tuple[str, int | str]] = [*self.signature_num_bytes.items(), ("sum", summed)]
        rows.append(("stored", self.constant_num_bytes))
        rows.append(("ratio", f"{self.constant_num_bytes / summed:.3f}" if summed else ""))
        return render_table("Constants in bytes", ("signature", "bytes"), rows)

    def _runtime(self) -> str:
        lines = ["Ops: " + ", ".join(f"{n} × {op}" for op, n in self.ops.items())]
        if self.fully_delegated:
            lines.append(f"XNNPACK takes every op, in {self.num_partitions} partition(s).")
        else:
            outside = ", ".join(sorted(set(self.ops_outside))) or "none it names"
            lines.append(
                f"XNNPACK runs {self.num_partitions} partition(s); left outside: {outside}."
            )
        if self.float_tensors:
            origins = sorted(set(self.float_tensors.values()))
            lines.append(f"{len(self.float_tensors)} float tensors, from: {', '.join(origins)}.")
        else:
            lines.append("No float tensor is left.")
        lines += self.input_notes
        if self.flex_ops:
            lines.append(f"LiteRT alone cannot run: {', '.join(self.flex_ops)}.")
        if self.patched:
            lines.append(f"Codes and scales written into the file: {', '.join(self.patched)}.")
        if self.sparse_layers:
            lines.append(f"Without their zeros in the file: {', '.join(self.sparse_layers)}.")
        if self.unverified:
            lines.append(f"Kernels not found in the file: {', '.join(self.unverified)}.")
        return "\n".join(lines) + "\n\n"

    def _parity(self) -> str:
        rows = []
        for key, outputs in self.parity.items():
            for p in outputs:
                top1 = "" if p.top1 is None else f"{p.top1:.2%}"
                shares = (f"{p.equal:.2%}", f"{p.within_one:.2%}", f"{p.largest:g}")
                rows.append((key, p.output, *shares, top1, p.distinct, p.samples))
        columns = ("signature", "output", "equal", "±1 step", "largest", "top-1", "codes")
        title = "Agreement with the Keras model, in output steps"
        table = render_table(title, (*columns, "samples"), rows) if rows else ""
        found = (*self.range_notes, *self.platform_notes)
        notes = "".join(f"{note}\n" for note in found) + "\n" * bool(found)
        return table + notes + self._unverified_signatures()

    def _float_agreement(self) -> str:
        rows, unknown, low = [], [], []
        for key, outputs in self.float_agreement.items():
            if outputs is None:
                unknown.append(key)
            for a in outputs or ():
                top1 = "" if a.top1 is None else f"{a.top1:.2%}"
                rows.append((key, a.output, top1, f"{a.snr_db:.1f}", a.samples))
                low += [repr(a.output)] if a.is_low else []
        columns = ("signature", "output", "top-1", "SNR in dB", "samples")
        text = ""
        if rows:
            text += render_table("Agreement with the float model", columns, rows)
        if unknown:
            text += f"{UNKNOWN_FLOAT.format(', '.join(map(repr, unknown)))}\n\n"
        if low:
            text += f"{LOW_FLOAT.format(', '.join(low))}\n\n"
        return text

    def _unverified_signatures(self) -> str:
        lines = []
        for key, source in self.verified_on.items():
            if source == SYNTHETIC:
                lines.append(
                    f"{key!r} was compared on synthetic inputs, drawn from the ranges of its "
                    "inputs. Pass verify_data to compare on real ones."
                )
            elif not source:
                lines.append(
                    f"{key!r} was not compared with the Keras model: no samples, and no known "
                    "ranges to draw inputs from. Pass verify_data."
                )
        return "".join(f"{line}\n" for line in lines) + "\n" * bool(lines)
