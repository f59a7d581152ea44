"""Instructions on ARM CPUs by a table: its terms, its rows, and the budget."""

import csv
import json
import pathlib

import numpy as np
import pytest

import tfcompress as tfc
from tests.one_op import one_op
from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.costs.instructions import MULTIPLIED_AT_ONCE, TABLE, operator_terms

RESULTS = pathlib.Path(__file__).parents[3] / "recipes" / "results"
PRICES = json.loads(TABLE.read_text("utf-8"))


def rows(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def zeros(*shape, dtype=np.int8):
    return np.zeros(shape, dtype)


def convolution(size, given, filters, kernel):
    inputs = [zeros(1, size, size, given), zeros(filters, kernel, kernel, given)]
    inputs.append(zeros(filters, dtype=np.int32))
    options = "Conv2D", {"strideH": 1, "strideW": 1}
    output = (1, size, size, filters), np.int8
    return one_op("CONV_2D", inputs, output, constants=(1, 2), options=options)


@pytest.mark.parametrize(
    ("data", "kind", "counts"),
    [
        # 9 positions are computed as 12, 24 channels as 32, 3 inputs as 4.
        (convolution(3, 3, 24, 1), "CONV_2D 1x1", {"macs": 12 * 32 * 4, "outputs": 12 * 32}),
        (
            convolution(4, 8, 16, 3),
            "CONV_2D",
            {"macs": 16 * 16 * 9 * 8, "outputs": 16 * 16, "rows": 16 * 9},
        ),
        (convolution(1, 8, 16, 1), "FULLY_CONNECTED", {"macs": 16 * 8, "outputs": 16}),
        (
            one_op("ADD", [zeros(1, 4, 5)] * 2, ((1, 4, 5), np.int8)),
            "ADD",
            {"outputs": 20},
        ),
        (
            one_op("MUL", [zeros(1, 4, 5), zeros(1, 1, 5)], ((1, 4, 5), np.int8)),
            "MUL",
            {"outputs": 20, "rows": 4},
        ),
    ],
)
def test_terms_follow_the_kernels(data, kind, counts):
    (found,) = operator_terms(tfc.inspect_tflite(data), MULTIPLIED_AT_ONCE["cortex-a76"])
    assert (found.kind, dict(found.counts)) == (kind, counts)
    price = PRICES["cortex-a76"][kind]
    expected = PRICES["cortex-a76"]["run"]["fixed"] + price["fixed"]
    expected += sum(price[name] * count for name, count in counts.items())
    assert tfc.count_instructions(data) == round(expected)


def test_the_table_is_that_of_the_rows():
    found = rows("arm_operators.csv")
    assert {row["cpu"] for row in found} == set(MULTIPLIED_AT_ONCE) == set(PRICES)
    errors = []
    for row in found:
        prices = PRICES[row["cpu"]]
        total = prices["run"]["fixed"]
        for kind, counts in json.loads(row["terms"]).items():
            total += sum(prices[kind][name] * count for name, count in counts.items())
        errors.append(total / int(row["instructions"]) - 1)
    assert np.abs(errors).mean() < 0.03
    assert np.abs(errors).max() < 0.25


def test_networks_are_predicted():
    """The rows are of whole networks, none of which the table was fitted to."""
    found = rows("arm_predicted.csv")
    assert {row["cpu"] for row in found} == set(MULTIPLIED_AT_ONCE)
    for row in found:
        error = int(row["predicted"]) / int(row["counted"]) - 1
        assert error == pytest.approx(float(row["error"]) / 100, abs=6e-4)
        assert abs(error) < 0.10, row


def test_what_is_not_in_the_table_is_refused():
    data = one_op("ADD", [zeros(1, 4)] * 2, ((1, 4), np.int8))
    with pytest.raises(ValueError, match=r"one of 'cortex-a53', .*cpu='cortex-a9'"):
        tfc.count_instructions(data, "cortex-a9")
    with pytest.raises(ValueError, match="Received: FLOOR"):
        tfc.count_instructions(one_op("FLOOR", [zeros(1, 4)], ((1, 4), np.int8)))
    floats = one_op("ADD", [zeros(1, 4, dtype=np.float32)] * 2, ((1, 4), np.float32))
    with pytest.raises(ValueError, match="float tensors: in0, in1, out"):
        tfc.count_instructions(floats)


def test_the_budget():
    origin = Costs(1, 1, 1, 1, 1, instructions={"cortex-a53": 4e6})
    budget = tfc.Instructions(0.5, "cortex-a53")
    assert budget.limit_for(origin) == 2e6
    assert budget.of(origin) == 4e6
    assert tfc.Instructions(300_000, "cortex-a53").limit_for(origin) == 300_000
    # Of a CPU that was not asked for, nothing fits.
    assert tfc.Instructions(5e6).of(origin) > 5e6
    for limit, cpu, message in ((0, "cortex-a53", "positive"), (1, "m1", "cpu='m1'")):
        with pytest.raises(ValueError, match=message):
            tfc.Instructions(limit, cpu)
    recipe = tfc.Recipe([{"train": {"epochs": 1}}], budgets=[budget])
    assert tfc.Recipe.from_dict(recipe.to_dict()).budgets == (budget,)
    values = recipe.to_dict()
    values["budgets"][0]["Instructions"]["cpu"] = "m1"
    with pytest.raises(tfc.RecipeError, match="cpu"):
        tfc.Recipe.from_dict(values)
