"""What a model may cost: bytes, multiply-accumulates, parameters, time, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tfcompress.analysis.costs.instructions import check_cpu
from tfcompress.export.flatbuffer.editing import is_op_name


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        num_bytes: Size of its file.
        gzip_bytes: The same under gzip.
        macs: Multiply-accumulates of an example.
        parameters: Weights, biases and batch norms of the Keras model.
        activation_bytes: The most bytes that tensors of the file hold at one time.
        milliseconds: Of a run here; `None` where no `Latency` budget without a table asks for it.
        instructions: CPU → instructions of a run, where budgets ask for them.
        operator_macs: LiteRT operator → multiply-accumulates of its calls in the file.
    """

    num_bytes: float
    gzip_bytes: float
    macs: float
    parameters: float
    activation_bytes: float
    milliseconds: float | None = None
    instructions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    operator_macs: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Budget:
    """A limit on one cost. See `Bytes`, `Macs`, `Latency` and the others."""

    #: Name of the cost, an attribute of `Costs`.
    cost = ""
    limit: float

    def limit_for(self, origin: Costs) -> float:
        """The limit in units of the cost.

        Args:
            origin: What the float model costs.
        """
        return self.limit

    def of(self, costs: Costs) -> float:
        """The cost that is limited."""
        value = getattr(costs, self.cost)
        return float("inf") if value is None else float(value)


def _check_positive(name: str, limit: float) -> None:
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if not is_number or not 0 < limit < math.inf:
        raise ValueError(f"Expected `{name}` to be a positive number. Received: {limit!r}")


def _check_bytes(limit: float) -> None:
    """Refuses what can only be meant as a share."""
    _check_positive("limit", limit)
    if limit < 1:
        raise ValueError(
            f"Expected `limit` to be a number of bytes, 1 or more. Received: {limit!r}. Shares are "
            "for tfc.Macs, tfc.Parameters and tfc.Instructions"
        )


def _check_share_or_count(limit: float) -> None:
    """Refuses what is neither a share nor a count, such as 1.5."""
    _check_positive("limit", limit)
    if limit > 1 and limit != int(limit):
        raise ValueError(
            "Expected `limit` to be a share in (0, 1], or a whole number above 1. Received: "
            f"{limit!r}"
        )


@dataclasses.dataclass(frozen=True)
class Bytes(Budget):
    """Most bytes of the file.

    Attributes:
        limit: Bytes, 1 or more.
        gzip: Whether they are those under gzip, which is what a phone downloads.
    """

    limit: float
    gzip: bool = False

    def __post_init__(self) -> None:
        _check_bytes(self.limit)
        if not isinstance(self.gzip, bool):
            raise TypeError(f"Expected `gzip` to be True or False. Received: {self.gzip!r}")

    @property
    def cost(self) -> str:  # type: ignore[override]
        """Name of the cost."""
        return "gzip_bytes" if self.gzip else "num_bytes"


@dataclasses.dataclass(frozen=True)
class Macs(Budget):
    """Most multiply-accumulates of an example.

    Attributes:
        limit: A share of those of the float model, in (0, 1], or a whole number above 1.
    """

    limit: float
    cost = "macs"

    def __post_init__(self) -> None:
        _check_share_or_count(self.limit)

    def limit_for(self, origin: Costs) -> float:
        """The limit as a number of multiply-accumulates."""
        return self.limit * origin.macs if self.limit <= 1 else self.limit


@dataclasses.dataclass(frozen=True)
class Parameters(Budget):
    """Most weights.

    Attributes:
        limit: A share of those of the float model, in (0, 1], or a whole number above 1.
    """

    limit: float
    cost = "parameters"

    def __post_init__(self) -> None:
        _check_share_or_count(self.limit)

    def limit_for(self, origin: Costs) -> float:
        """The limit as a number of weights."""
        return self.limit * origin.parameters if self.limit <= 1 else self.limit


@dataclasses.dataclass(frozen=True)
class Latency(Budget):
    """Most milliseconds of a run.

    Attributes:
        limit: Milliseconds, positive.
        table: LiteRT operator → milliseconds per million multiply-accumulates of that operator, as
            measured on a phone; operators without multiplications, or without a key, cost
            nothing. By default the file is run here, with one thread.
    """

    limit: float
    table: Mapping[str, float] | None = None
    cost = "milliseconds"

    def __post_init__(self) -> None:
        _check_positive("limit", self.limit)
        if self.table is None:
            return
        if not isinstance(self.table, Mapping) or not self.table:
            raise TypeError(
                "Expected `table` as operator → milliseconds per million multiply-accumulates, "
                f"such as {{'CONV_2D': 0.4}}, or None. Received: {self.table!r}"
            )
        for operator, price in self.table.items():
            if not is_op_name(operator):
                raise ValueError(
                    "Expected the keys of `table` to be operators of LiteRT, such as 'CONV_2D'. "
                    f"Received: {operator!r}"
                )
            if price != 0:
                _check_positive(f"table[{operator!r}]", price)

    def of(self, costs: Costs) -> float:
        """The milliseconds of a run, by the table where there is one."""
        if self.table is None:
            return super().of(costs)
        found = costs.operator_macs
        return float(sum(price * found.get(op, 0.0) / 1e6 for op, price in self.table.items()))


@dataclasses.dataclass(frozen=True)
class Instructions(Budget):
    """Most instructions of a run on an ARM CPU, by a table that the package has.

    See `count_instructions`: it needs no phone, and files of operators that are not in the table
    are refused.

    Attributes:
        limit: A share of those of the model's int8 file before the search, in (0, 1], or a whole
            number of instructions above 1.
        cpu: `"cortex-a53"`, `"cortex-a76"` or `"i8mm"`.
    """

    limit: float
    cpu: str = "cortex-a76"
    cost = "instructions"

    def __post_init__(self) -> None:
        _check_share_or_count(self.limit)
        check_cpu(self.cpu)

    def limit_for(self, origin: Costs) -> float:
        """The limit as a number of instructions."""
        return self.limit * self.of(origin) if self.limit <= 1 else self.limit

    def of(self, costs: Costs) -> float:
        """The instructions of a run."""
        return float(costs.instructions.get(self.cpu, float("inf")))


@dataclasses.dataclass(frozen=True)
class PeakMemory(Budget):
    """Most bytes that the tensors of a run hold at one time, the runtime's arena.

    Attributes:
        limit: Bytes, 1 or more.
    """

    limit: float
    cost = "activation_bytes"

    def __post_init__(self) -> None:
        _check_bytes(self.limit)


def as_budgets(budget: Budget | tuple[Budget, ...] | list[Budget] | None) -> tuple[Budget, ...]:
    """A budget, several or none as a tuple.

    Raises:
        TypeError: Something else.
    """
    given = budget if isinstance(budget, tuple | list) else [] if budget is None else [budget]
    for item in given:
        if not isinstance(item, Budget):
            raise TypeError(
                "Expected `budget` to be tfc.Bytes, tfc.Macs, tfc.Parameters, tfc.Latency, "
                f"tfc.Instructions, tfc.PeakMemory, or several of them. Received: {item!r}."
            )
    return tuple(given)
