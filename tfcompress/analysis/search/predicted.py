"""What candidates cost and lose, predicted before any is trained."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
from keras import tree

from tfcompress.analysis.costs.budgets import Budget, Bytes, Costs, Parameters
from tfcompress.analysis.costs.costs import LayerBytes, file_costs, measured_for, stored_bits
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.structured import Structured
from tfcompress.analysis.options.widths import Widths
from tfcompress.analysis.search.front import SIZES, Point, Size, assignments_at
from tfcompress.analysis.search.losses import Losses
from tfcompress.analysis.search.result import Candidate
from tfcompress.analysis.search.state import State
from tfcompress.analysis.search.structures import BySize, Measure, Structures
from tfcompress.analysis.sensitivity.table import Sensitivity
from tfcompress.export.report import ExportReport
from tfcompress.export.tflite import export_tflite
from tfcompress.model.progress import Progress, Verbosity
from tfcompress.quantization.quantized_model import QuantizedModel

# Samples that ranges are calibrated on where only the size of a file counts.
_FEW = 16
# What widths and ranks leave of the model, to begin with.
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)
# Shares of limits of bytes that are met: a trained file differs a little from the predicted one.
_NEAR = (1.0, 0.98, 0.95)
# Times that the interval of shares in which a budget lies is halved.
_HALVINGS = 3


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file, its report and the model that it is of."""

    data: bytes
    report: ExportReport
    model: QuantizedModel


class Predictions:
    """Costs and losses of candidates.

    Args:
        model: The float model, without nested models.
        table: What each option costs alone.
        scored: Samples that calibrate ranges.
        budgets: What files may cost.
        state: Where costs of files are kept.
        packed: Whether kernels of convolutions are packed.

    Attributes:
        origin: What the float model costs; of bytes, those of its int8 file.
    """

    def __init__(
        self,
        model: keras.Model,
        table: Sensitivity,
        scored: Samples,
        budgets: Sequence[Budget],
        state: State,
        packed: bool = False,
    ):
        self._whole = Assignment(packed=packed)
        self.model, self.scored, self.state = model, scored, state
        self.budgets = tuple(budgets)
        self.losses = Losses(table)
        self.layers = self.losses.layers
        self.widths = Widths(model) if self.losses.channels else None
        self._sizes = tuple(b for b in budgets if isinstance(b, Bytes))
        # The front is over bytes, unless only other costs are limited.
        self._ordering = self._sizes or self.budgets or (Bytes(1, gzip=True),)
        self.origin = self.untrained_costs(self._whole)

    def cost(self, costs: Costs) -> float:
        """What candidates are ordered by: of what is limited, the largest share of its limit."""
        return max(b.of(costs) / b.limit_for(self.origin) for b in self._ordering)

    def fits(self, costs: Costs) -> bool:
        """Whether all budgets are met."""
        return all(b.of(costs) <= b.limit_for(self.origin) for b in self.budgets)

    def structured(self, assignment: Assignment) -> Structured:
        """The float model with the widths and ranks of an assignment."""
        return assignment.structured(self.model, self.widths)

    def points(self, verbose: Verbosity) -> list[Point]:
        """Candidates of all sets of widths and ranks, and of all sizes."""
        swept, limits = self._swept()
        found: list[Point] = []
        sweeps = self._sweeps()
        count = 1 + len(sweeps) * (len(_SHARES) + (_HALVINGS if self.budgets else 0))
        with Progress("structures", count, verbose) as progress:
            for structure, by_size in self._structures(sweeps):
                base = self.untrained_costs(structure)
                start = self.structured(structure)
                stored = self._stored_bits(structure)
                sizes = LayerBytes(start, stored, self.layers, structure.packed)
                points = assignments_at(
                    structure, self.losses, sizes, base, self.layers, swept, limits
                )
                found += [dataclasses.replace(point, by_size=by_size) for point in points]
                macs, weights = base.macs / self.origin.macs, base.parameters
                weights /= self.origin.parameters
                progress.step(f"{macs:.0%} of the MACs, {weights:.0%} of the weights")
        return found

    def _swept(self) -> tuple[list[Size], list[Mapping[Size, float]]]:
        """The sizes that are swept, and those to meet: the limits, and a little below them."""
        limits: dict[Size, float] = {}
        for size in SIZES:
            own = [b.limit for b in self._sizes if b.cost == size]
            if own:
                limits[size] = min(own)
        met = [{s: n * share for s, n in limits.items()} for share in _NEAR if limits]
        return list(limits) or ["gzip_bytes"], [*met]

    def _sweeps(self) -> list[Structures | BySize]:
        """How widths and ranks are chosen: by what the budgets limit, each alone and together."""
        limited: list[Measure] = []
        if any(not isinstance(b, Bytes | Parameters) for b in self.budgets):
            limited.append("macs")
        if not limited or any(isinstance(b, Bytes | Parameters) for b in self.budgets):
            limited.append("parameters")
        measures: list[list[Measure]] = [[measure] for measure in limited]
        measures += [limited] if len(limited) > 1 else []
        found: list[Structures | BySize] = [
            Structures(self.model, self.widths, self.losses, limits) for limits in measures
        ]
        if self.widths is not None and self.budgets:
            found += [BySize(self.widths, measure) for measure in limited]
        return found

    def _structures(
        self, sweeps: Sequence[Structures | BySize]
    ) -> Iterator[tuple[Assignment, bool]]:
        """Widths and ranks: the whole model, falling shares, and those next to the budgets.

        Returns:
            The structures, each once, and whether they were chosen by size.
        """
        seen = {self._whole.key}
        yield self._whole, False
        for sweep in sweeps:
            within, over = 0.0, 1.0
            for number in range(len(_SHARES) + _HALVINGS):
                is_near = number >= len(_SHARES)
                if is_near and not (self.budgets and within):
                    break
                share = (within + over) / 2 if is_near else _SHARES[number]
                structure = sweep.at(share)
                if structure is None:
                    continue
                structure = dataclasses.replace(structure, packed=self._whole.packed)
                if self.fits(self.untrained_costs(structure)):
                    within = max(within, share)
                else:
                    over = min(over, share)
                if structure.key not in seen:
                    seen.add(structure.key)
                    yield structure, isinstance(sweep, BySize)

    def smallest_reachable(self, points: Sequence[Point]) -> str:
        """The message of budgets that no candidate meets."""
        parts = []
        for budget in self.budgets:
            least = min(budget.of(point.costs) for point in points)
            limit = budget.limit_for(self.origin)
            if least > limit:
                parts.append(
                    f"{budget.cost} of at most {limit:,.6g}, of which {least:,.6g} is the "
                    "smallest that the options reach"
                )
        if not parts:
            smallest = [f"{b.cost} {min(b.of(p.costs) for p in points):,.6g}" for b in self.budgets]
            parts = [
                f"all of {self.budgets} at once; one by one the options reach {', '.join(smallest)}"
            ]
        return (
            f"Expected a budget that can be met. Received: {'; '.join(parts)}. Allow more, or give "
            "more options, such as 'channels=0.25' ('sparsity=0.9' lowers bytes alone)."
        )

    def nearest_miss(self, files: Sequence[Costs]) -> str:
        """The message of files that all cost more than predicted."""
        found = "; ".join(
            f"{b.cost} of {min(map(b.of, files)):,.6g} where {b.limit_for(self.origin):,.6g} is "
            "allowed"
            for b in self.budgets
        )
        return f"Expected a file within the budget. Received: at best {found}. Allow more."

    def nothing_holds(self, tried: Sequence[Candidate], max_drop: float) -> str:
        """The message of candidates of which none holds `max_drop`."""
        fitting = [c for c in tried if c.fits]
        text = "no file within the budget"
        if fitting:
            near = min(fitting, key=lambda c: c.drop.mean)
            text = (
                f"a drop of {near.drop.mean:.4g} (bound {near.drop.bound:.4g}) at "
                f"{self._shown(near.costs)}, the nearest within the budget"
            )
        outside = [c for c in tried if not c.fits and c.drop.holds(max_drop)]
        if outside:
            small = min(outside, key=lambda c: self.cost(c.costs))
            text += (
                f"; {self._shown(small.costs)} would hold it, with a drop of {small.drop.mean:.4g}"
            )
        return (
            f"Expected a candidate that loses at most {max_drop:g}. Received: {text}. Allow a "
            "larger drop or budget, or train longer (epochs=)."
        )

    def _shown(self, costs: Costs) -> str:
        """The costs that candidates are ordered by, for a message."""
        return " and ".join(f"{b.of(costs):,.6g} {b.cost}" for b in self._ordering)

    def costs_of(self, assignment: Assignment, kind: str, data: Callable[[], bytes]) -> Costs:
        """Costs of a file, which are kept for calls with budgets that ask for the same ones.

        Args:
            assignment: What the file has.
            kind: Which of its files that is, `"untrained"` or `"trained"`.
            data: Gives the file where its costs are not known.
        """
        key = f"costs {kind} {assignment.key} {measured_for(self.budgets)}"
        known = self.state.get(key)
        if known is None:
            model = self.structured(assignment).model
            known = dataclasses.asdict(file_costs(model, data(), self.budgets))
            self.state.set(key, known)
        return Costs(**known)

    def untrained_costs(self, assignment: Assignment) -> Costs:
        """Costs of the file before training, which changes few bytes."""
        return self.costs_of(assignment, "untrained", lambda: self.export(assignment).data)

    def _stored_bits(self, structure: Assignment) -> dict[tuple[str, int], int]:
        """What files store codes of 4 and 2 bits in, from one file of each set of ranks."""
        found: dict[tuple[str, int], int] = {}
        ranks = dataclasses.replace(self._whole, ranks=structure.ranks)
        for bits in sorted({b for row in self.losses.bits.values() for b in row if b < 8}):
            known = self.state.get(f"stored {bits} {ranks.key}")
            if known is None:
                layers = [n for n, row in self.losses.bits.items() if bits in row]
                exported = self.export(dataclasses.replace(ranks, bits=dict.fromkeys(layers, bits)))
                stored = stored_bits({bits: exported.report}, exported.model)
                known = {name: width for (name, _), width in stored.items()}
                self.state.set(f"stored {bits} {ranks.key}", known)
            found |= {(name, bits): width for name, width in known.items()}
        return found

    def export(self, assignment: Assignment) -> Exported:
        """The file of an assignment without training, which is as large as the trained one."""
        few = tree.map_structure(lambda a: a[:_FEW], self.scored.inputs)
        model = assignment.build(self.structured(assignment), few, bias_correction=False)
        _tell_biases_apart(model)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            file = pathlib.Path(folder) / "model.tflite"
            # Golden pairs of the samples: without any, token numbers cannot be made up.
            report = export_tflite(model, file, verify_samples=0, golden_data=few, allow_float=True)
            return Exported(file.read_bytes(), report, model)


def _tell_biases_apart(model: QuantizedModel) -> None:
    """Gives every bias numbers of its own: a file stores equal ones, as before training, once."""
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable.name == "bias":
            value = np.asarray(variable)
            variable.assign(value + random.uniform(0.01, 0.02, value.shape).astype(value.dtype))
