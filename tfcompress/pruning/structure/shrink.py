"""`shrink`: an ordinary Keras model in, the same model with fewer channels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.subclassed import functional_for
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.structure.options import DEFAULT_WIDTHS, WidthOptions
from tfcompress.pruning.structure.planner import LayerBounds
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.shrinking import Shrinking, check_round_to


def shrink(
    model: keras.Model,
    *,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_cost: float | None = None,
    cost: Callable[[keras.Model], float] | None = None,
    threshold: float | None = None,
    criterion: str | Callable[..., Any] | Criterion = "magnitude",
    data: Any = None,
    bounds: LayerBounds | None = None,
    round_to: int | None = None,
    merge: float | None = None,
    inputs: Any = None,
    seed: int = 0,
    widths: WidthOptions = DEFAULT_WIDTHS,
    scoring: ScoringOptions = DEFAULT_SCORING,
) -> keras.Model:
    """Returns a smaller model: whole channels removed, weights sliced, nothing else changed.

    Which channels go together is read off the graph (see `Dependencies`; print it). With a target
    the channels of least score go until it is reached, but for groups that hardly count in it.
    Without one, exactly the channels go that do nothing any more: those that were masked during
    `fit`, or whose batch norm has no scale left. A constant that such a channel still emits moves
    into the biases of the layers that read it; where "same" padding makes that inexact, the channel
    stays and the report says so.

    The result is of ordinary Keras layers, can be trained further, and is saved and loaded without
    tfcompress. A quantized model stays quantized: its masks, scales and ranges are cut along.

    To go in steps, shrink, train, and shrink again: a target is a fraction of the model given, so
    two steps to a half are 0.707 each.

    Args:
        model: A built Sequential or Functional model; it is left untouched.
        target_macs: Multiply-accumulates to keep, as a fraction of the model's, in (0, 1).
        target_parameters: Weights to keep, likewise.
        target_cost: What `cost` may come to, likewise.
        cost: `cost(model) -> number`, such as a measured latency. About ten models are built.
        threshold: Instead of a target: channels with a score below it go; with
            `WidthOptions(normalization=None)` a raw score.
        criterion: What scores a channel: a criterion of pruning (`"magnitude"`, `"l2"`,
            `"taylor"`, `"fisher"`, `"random"`, ..., or a function) or one for whole channels
            (`"batch_norm_scale"`, `"geometric_median"`, `"activation_mean"`,
            `"activation_entropy"`, `"apoz"`).
        data: Batches for criteria that need gradients or activations: a tuple `(x, y)` of arrays,
            or a `tf.data.Dataset`.
        bounds: Layer name, regular expression, class or name of a class → the fractions of its
            channels that it keeps at least and at most: `(1.0, 1.0)` leaves it alone. A group of
            layers keeps to the narrowest bounds of the layers that make it and that it passes.
        round_to: Widths are multiples of it, or unchanged: 8 by default with a target, which is
            what XNNPACK computes in, else 1. On CPUs with AVX-512 or AMX 16 and 32 run faster. It
            is halved, with a note in the report, as long as the target cannot be met within the
            tolerance; so is a target that cannot be met at all.
        merge: Where given, channels whose weights differ by no more than this fraction of their
            size are first merged into one, which the following layers read with the sum of their
            weights.
        inputs: An example batch, where the model's input sizes are not known, for counting MACs.
        seed: For criteria that are random.
        widths: How scores become widths: ranking, comparison of layers, least widths, tolerance.
        scoring: How a criterion reads `data`: number and size of batches, loss.

    Returns:
        The smaller model, uncompiled, with the report as its attribute `shrink_report`.

    Raises:
        TypeError: Not a Keras model.
        ValueError: A subclassed or unbuilt model; several targets or one outside (0, 1); a target
            that the bounds do not allow; data missing; nothing to remove.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((16,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
        ... )
        >>> small = tfc.shrink(model, target_macs=0.5)
        >>> [layer.units for layer in small.layers[1:]]
        [32, 10]
    """
    targets = {
        "target_macs": target_macs,
        "target_parameters": target_parameters,
        "target_cost": target_cost,
        "threshold": threshold,
    }
    model = functional_for(model, data)
    check_plain_kernels(model)
    target = _one_target(targets, cost)
    check_round_to(round_to)
    scores = Scoring(criterion, data, scoring, widths, seed)
    # Without a target exactly what is silent goes, however much of a layer that is.
    work = Shrinking(model, bounds, 0.0 if target is None else widths.min_kept, merge, inputs)
    used = round_to or 1
    if target is None:
        units = work.dead(used)
    elif target[0] == "threshold":
        units = work.below(scores, target[1], used)
    else:
        units, used = work.reach(scores, *target, cost, round_to or 8)
    smaller = work.build(units)
    smaller.shrink_report = work.report(units, used, smaller)
    return smaller


def _one_target(
    targets: Mapping[str, float | None], cost: Callable[[keras.Model], float] | None
) -> tuple[str, float] | None:
    """`(name, value)` of the target or threshold that is given; `None` without one."""
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"Expected one target. Received: {given}")
    for name, value in given.items():
        if name != "threshold" and not 0.0 < value < 1.0:
            raise ValueError(
                f"`{name}` is the fraction to keep and must lie in (0, 1). Received: {value}"
            )
    if ("target_cost" in given) != (cost is not None):
        raise ValueError(
            "Expected `cost` and `target_cost` together: a function of a model, and the fraction "
            f"of its value for the given model. Received: cost={cost}, {given}"
        )
    return next(iter(given.items()), None)
