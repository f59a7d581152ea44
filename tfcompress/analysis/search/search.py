"""`search`: the smallest model that loses no more than is allowed, measured as a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.analysis.costs.budgets import Budget, as_budgets
from tfcompress.analysis.measuring.files import predict
from tfcompress.analysis.measuring.identity import identity_of
from tfcompress.analysis.measuring.measures import output_kinds
from tfcompress.analysis.measuring.metrics import MetricLike, Mode, resolve_metric
from tfcompress.analysis.measuring.samples import read_samples
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.options import parse_options
from tfcompress.analysis.recipes.loss_check import check_training
from tfcompress.analysis.recipes.objective import objective_of, trains_itself
from tfcompress.analysis.recipes.recipe import Recipe, recipe_of
from tfcompress.analysis.search.arguments import (
    check_arguments,
    check_data,
    check_other_data,
    check_other_samples,
    checksum_of_training,
    compiled_loss,
)
from tfcompress.analysis.search.front import Point, knee, undominated
from tfcompress.analysis.search.predicted import Predictions
from tfcompress.analysis.search.result import Candidate, SearchResult
from tfcompress.analysis.search.state import State
from tfcompress.analysis.search.trials import Original, Training, Trials
from tfcompress.analysis.sensitivity.sensitivity import sensitivity
from tfcompress.export.conversion.converter import shared_converter
from tfcompress.model.batches import check_ends, check_repeatable
from tfcompress.model.compilation import compiled_as, functional_as_compiled
from tfcompress.model.flat import flat_copy
from tfcompress.model.progress import Progress, Verbosity

#: What a search chooses from by default.
SEARCH_OPTIONS = (
    *("int8", "int4", "int2", "sparsity=0.5", "sparsity=0.7"),
    *("channels=0.875", "channels=0.75", "channels=0.625", "channels=0.5"),
)


def search(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    budget: Budget | Sequence[Budget] | None = None,
    max_drop: float | None = None,
    metric: MetricLike = None,
    mode: Mode = "auto",
    epochs: int = 4,
    options: Sequence[str] = SEARCH_OPTIONS,
    trials: int = 4,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    distill: bool = True,
    samples: int = 256,
    confidence: float = 0.95,
    packed: bool = False,
    seed: int = 0,
    path: str | os.PathLike | None = None,
    verbose: Verbosity = "auto",
) -> SearchResult:
    """Finds bits, zeros, channels and ranks of every layer under a budget, and trains the result.

    1. `sensitivity` measures every option of every layer on the first samples of `train`.
    2. Sets of widths and ranks are chosen by an exact knapsack for falling numbers of weights,
       or of multiply-accumulates where a budget limits these, time or memory; and sets of widths
       as `shrink` does, by one ranking of channels by size. Each is exported in int8: its costs
       are those of that file. Bytes of fewer bits and of zeros are counted from the codes of each
       kernel, as the file stores them.
    3. For each of them an exact multiple-choice knapsack gives the bits and sparsities of least
       loss at every size: the front, without training.
    4. Candidates of the front are built (channels, low rank, zeros, bits), trained in one `fit`
       with the float model as teacher, exported, and their files run on `validation`.

    With `max_drop` the smallest candidate that holds it is sought by bisection of the front: where
    one fails, the next larger is tried, until `trials` are used. Without it the candidate of least
    predicted loss within the budget is trained, and with two `trials` or more also the first one
    whose widths come from the ranking by size, for training makes up for much of what is lost
    before it; the better one is taken. Without a budget either, the one at the knee of the front.

    Args:
        model: A built float model; it is left untouched.
        train: `(x, y)` as arrays, or batches as for `fit`. Its first samples calibrate ranges.
        validation: Likewise, other samples: the drop is measured on them.
        budget: `Bytes`, `Macs`, `Parameters`, `Latency`, `Instructions`, `PeakMemory`, or several.
            Files above one of them are never chosen.
        max_drop: How much the metric may fall below that of the float model, in its units: 0.01 is
            a point of accuracy. The confidence bound of the paired drop has to hold it, or the
            mean, where the samples are too few for a bound as narrow as that (the notes say so).
        metric: By default the first compiled metric, else accuracy of labels that are classes; see
            `sensitivity`.
        mode: Whether more of the metric is better (`"max"`) or less (`"min"`). By default the
            class of the metric says so, then its name.
        epochs: Of each candidate's training.
        options: What to choose from, beside int8; see `sensitivity`.
        trials: Most candidates that are trained.
        learning_rate: Of Adam, at the beginning; it falls to 0 by half a cosine.
        batch_size: Of arrays.
        distill: Whether the float model teaches, each output by a distance of its kind. A model of
            a class with a train step or `compute_loss` of its own is trained by that alone.
        samples: Samples for sensitivities and for calibration.
        confidence: Of the bound, in (0.5, 1).
        packed: Whether larger kernels of convolutions of 4 and 2 bits are packed; see
            `WeightScheme`. They take more time, so that it is for budgets of bytes.
        seed: Of training.
        path: A folder that keeps every step; a search that was interrupted and is called again
            with the same arguments continues there; budgets, `options`, `trials` and `max_drop` may
            be others. It holds each candidate's `.tflite` and `.keras`.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The trained winner, the front and all measured candidates. Print it.

    Raises:
        TypeError: Not a Keras model, no budget, or data that cannot be read.
        ValueError: A budget that cannot be met (with the smallest that can), no candidate that
            holds `max_drop` (with the nearest), an argument out of range, `validation` that is
            `train` or has no labels, no loss or labels that it does not take, neither a metric nor
            labels that accuracy could be taken of, a metric of which nothing tells whether more is
            better, a model without a layer that the options apply to, a folder of another search,
            or a folder and a metric or loss that cannot be told from another one, for it holds more
            than code, plain values and arrays.
    """
    budgets = as_budgets(budget)  # type: ignore[arg-type]
    check_arguments(
        model,
        max_drop,
        confidence,
        learning_rate,
        path,
        epochs=epochs,
        trials=trials,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
    )
    if not isinstance(packed, bool):
        raise TypeError(f"Expected `packed` to be True or False. Received: {packed!r}.")
    check_other_data(validation, train, "train")
    check_ends(validation, "validation")
    check_repeatable(train, "train")
    chosen = parse_options(("int8", *parse_options(options)))
    model = functional_as_compiled(model, train)
    held = read_samples(validation, model)
    found = resolve_metric(metric, model, mode).of(held, model)
    scored = read_samples(train, model, samples)
    check_other_samples(held, scored, "train")
    reference = predict(model, held)
    check_data(held, scored, found, reference)
    if epochs:
        kinds = output_kinds(model, tree.flatten(predict(model, scored)))
        check_training(model, objective_of(model, kinds), scored)
    # What does not take place stands in no recipe.
    teaches = distill and not trains_itself(model)
    training = Training(train, epochs, learning_rate, batch_size, teaches, seed)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    settings |= {"distill": distill, "samples": samples, "seed": seed}
    settings |= {"packed": packed, "confidence": confidence}
    origin: dict[str, Any] = {"model": model, "validation": held}
    if path is not None:
        origin["train"] = checksum_of_training(train, scored)
        # Without its name, which Keras counts up.
        origin["metric"] = identity_of(dataclasses.replace(found, name=""), "metric")
        origin["loss"] = identity_of(compiled_loss(model), "loss")
    state = State(path, origin, settings)
    flat = compiled_as(model, flat_copy(model))
    with shared_converter():
        table = sensitivity(
            flat,
            (scored.inputs, scored.labels) if scored.labels is not None else scored.inputs,
            options=[str(option) for option in chosen],
            samples=samples,
            path=state.file("sensitivity.json"),
            verbose=verbose,
        )
        predictions = Predictions(flat, table, scored, budgets, state, packed)
        points = predictions.points(verbose)
        front = undominated(points, predictions.cost)
        inside = [p for p in points if predictions.fits(p.costs)]
        if not inside:
            raise ValueError(predictions.smallest_reachable(points))
        recipe = _recipes(predictions, training, found.name, max_drop, samples)
        original = Original(model, held, reference, scored, found, confidence)
        work = Trials(original, training, predictions, recipe, state)
        with Progress("search", trials, verbose) as progress:
            work.advance = progress.step
            ladder = undominated(inside, predictions.cost)
            if max_drop is not None:
                best = _smallest_that_holds(work, ladder, max_drop, trials)
            elif budgets:
                best = _best_metric(work, inside, trials)
            else:
                best = work.measure(ladder[knee(ladder, predictions.cost)])
        result_model = work.model_of(best)
    measured = sorted(work.measured, key=lambda c: predictions.cost(c.point.costs))
    return SearchResult(
        result_model,
        best,
        tuple(measured),
        tuple(front),
        table,
        found.value(held.labels, reference),
        found.name,
        max_drop,
        recipe(best.point.assignment),
        predictions.origin,
        tuple(_notes(best, max_drop)),
    )


def _recipes(
    predictions: Predictions,
    training: Training,
    metric: str,
    max_drop: float | None,
    samples: int,
) -> Callable[[Assignment], Recipe]:
    """Assignment → the recipe that gives it again."""
    names = ("epochs", "learning_rate", "batch_size", "seed")

    def recipe(assignment: Assignment) -> Recipe:
        return recipe_of(
            assignment,
            predictions.structured(assignment),
            {name: getattr(training, name) for name in names},
            training.distill,
            metric=metric,
            max_drop=max_drop,
            budgets=predictions.budgets,
            calibration_samples=samples,
        )

    return recipe


def _best_metric(work: Trials, points: Sequence[Point], trials: int) -> Candidate:
    """The best of those whose files are within the budget: the first of each kind of widths."""
    tried: list[Candidate] = []
    for kind in (False, True):
        for point in sorted((p for p in points if p.by_size == kind), key=lambda p: p.loss):
            if len(tried) >= trials:
                break
            if not work.fits_untrained(point):
                continue
            tried.append(work.measure(point))
            if tried[-1].fits:
                break
    fitting = [candidate for candidate in tried if candidate.fits]
    if not fitting:
        files = [*work.too_large, *(candidate.costs for candidate in tried)]
        raise ValueError(work.predictions.nearest_miss(files))
    return min(fitting, key=lambda c: c.drop.mean)


def _smallest_that_holds(
    work: Trials, ladder: Sequence[Point], max_drop: float, trials: int
) -> Candidate:
    """The cheapest candidate of a ladder, cheapest first, that holds `max_drop`."""
    low, high = -1, len(ladder)
    best: Candidate | None = None
    tried: list[Candidate] = []
    while high - low > 1 and len(tried) < trials:
        # The last trial must not leave nothing that holds: it goes to the largest.
        is_last = best is None and len(tried) == trials - 1
        index = high - 1 if is_last else (low + high) // 2
        candidate = work.measure(ladder[index])
        tried.append(candidate)
        if candidate.fits and candidate.drop.holds(max_drop):
            best, high = candidate, index
        elif candidate.fits:
            low = index
        else:
            high = index
    if best is None:
        raise ValueError(work.predictions.nothing_holds(tried, max_drop))
    return best


def _notes(best: Candidate, max_drop: float | None) -> list[str]:
    if max_drop is None or best.drop.is_sure(max_drop):
        return []
    width = best.drop.bound - best.drop.mean
    return [
        f"{best.drop.samples} validation samples give the drop to ± {width:.2g} at "
        f"{best.drop.confidence:.0%}, more than half of max_drop={max_drop:g}: it was decided by "
        "the mean. More samples make it sure."
    ]
