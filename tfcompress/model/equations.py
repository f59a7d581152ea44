"""Einsum equations of two operands, read as one batched matrix product."""

from __future__ import annotations

import dataclasses
import string


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A product `left,right->output`, one letter per axis.

    Attributes:
        left: Letters of the first operand.
        right: Letters of the second operand.
        output: Letters of the result.
        batch: Letters of both operands and of the result, in the order of `left`.
        summed: Letters of both operands alone, in the order of `left`.
        rows: Letters of the first operand and of the result, in the order of `left`.
        columns: Letters of the second operand and of the result, in the order of `right`.
    """

    left: str
    right: str
    output: str
    batch: str
    summed: str
    rows: str
    columns: str

    @property
    def result(self) -> str:
        """The letters of the result as a matrix product gives them, before any transpose."""
        return self.batch + self.rows + self.columns


def read_einsum(
    equation: str, left_rank: int | None = None, right_rank: int | None = None
) -> Contraction | None:
    """Reads an equation such as `"abc,cde->abde"`.

    Args:
        equation: Of two operands. An ellipsis may stand for axes of either.
        left_rank: Rank of the first operand; `None` takes an ellipsis for one axis.
        right_rank: Likewise of the second.

    Returns:
        The product; `None` where it is none: another number of operands, no explicit result, an
        axis that is summed in one operand alone or occurs twice in it.
    """
    sides = equation.replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or len(operands) != 2:
        return None
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    left = _expanded(operands[0], left_rank, free)
    right = _expanded(operands[1], right_rank, free)
    ranks = (left_rank, right_rank)
    hidden = max(_hidden(text, rank) for text, rank in zip(operands, ranks, strict=True))
    output = sides[1].replace("...", "".join(free[:hidden][::-1]))
    if any(len(set(text)) != len(text) for text in (left, right, output)):
        return None
    both = set(left) & set(right)
    kept = set(output)
    if kept - set(left) - set(right) or (set(left) ^ set(right)) - kept:
        return None
    return Contraction(
        left,
        right,
        output,
        batch="".join(c for c in left if c in both and c in kept),
        summed="".join(c for c in left if c in both and c not in kept),
        rows="".join(c for c in left if c not in both),
        columns="".join(c for c in right if c not in both),
    )


def _hidden(text: str, rank: int | None) -> int:
    """How many axes the ellipsis of an operand stands for."""
    if "..." not in text:
        return 0
    return 1 if rank is None else rank - len(text.replace("...", ""))


def _expanded(text: str, rank: int | None, free: list[str]) -> str:
    """An operand with letters in place of its ellipsis, counted from the last axis."""
    return text.replace("...", "".join(free[: _hidden(text, rank)][::-1]))
