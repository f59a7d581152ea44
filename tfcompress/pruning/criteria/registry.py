"""Criteria and their registry: how much a weight or a channel matters.

A criterion is a function that returns scores, higher for what should stay. The **names** of its
parameters say what it needs, and whether it scores weights or whole channels.

One score per weight, for every kind of pruning; patterns and groups of channels sum the scores of
their weights:

| parameter | what it receives |
|---|---|
| `kernel` | the kernel |
| `gradient` | gradient of a batch's loss with respect to the kernel; the function is called once per batch and its scores are averaged |
| `activations` | the layer's output, averaged over positions: shape `(examples, ...)`, where `...` broadcasts against the kernel (size 1 on every axis that is not an output axis) |
| `seed` | a tuple of integers that is different for every kernel and the same at every step |

One score per channel, shape `(channels,)`, for `shrink` and `ChannelPruning`; exactly one of:

| parameter | what it receives |
|---|---|
| `scale` | abs(γ) of one batch norm that the channels pass, `(channels,)` |
| `weights` | one kernel that makes the channels, `(channels, weights)` |
| `mean_magnitude` | mean abs(activation) where the next layers read it, `(channels,)` |
| `nonzero` | fraction of activations there that are not zero, `(channels,)` |
| `position_means` | activations there, averaged over positions, `(examples, channels)` |

```python
tfc.register_criterion("signal", lambda kernel, gradient: abs(kernel) * gradient**2)
tfc.register_criterion("spread", lambda weights: weights.std(1))
```
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

WEIGHT_INPUTS = ("kernel", "gradient", "activations", "seed")
#: What a criterion of channels may take → whether batches must be run through the model for it.
CHANNEL_INPUTS = {
    "scale": False,
    "weights": False,
    "mean_magnitude": True,
    "nonzero": True,
    "position_means": True,
}


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A score function with what it needs.

    Attributes:
        name: Its name in the registry.
        function: Returns scores; its parameters are named as in the tables of the module.
        accumulate: Whether the scores of all training steps are added up, with the optimizer's
            own displacement of the kernel (negated) in place of the gradient.

    Raises:
        ValueError: Parameters that do not fit together.
    """

    name: str
    function: Callable[..., Any]
    accumulate: bool = False

    def __post_init__(self):
        parameters = set(self.parameters)
        scores_weights = "kernel" in parameters and parameters <= set(WEIGHT_INPUTS)
        if not (scores_weights or (len(parameters) == 1 and parameters <= set(CHANNEL_INPUTS))):
            raise ValueError(
                "A criterion is a function whose parameters are named `kernel` and, where it "
                "needs them, `gradient`, `activations` and `seed`; or, to score whole channels, "
                f"one of {list(CHANNEL_INPUTS)}. "
                f"Received: {self.name!r} with parameters {self.parameters}"
            )
        if self.accumulate and parameters != {"kernel", "gradient"}:
            raise ValueError(
                "A criterion that accumulates over training takes exactly `kernel` and "
                f"`gradient`. Received: {self.name!r} with parameters {self.parameters}"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)

    @property
    def scores_channels(self) -> bool:
        """Whether it scores whole channels and not single weights."""
        return "kernel" not in self.parameters

    @property
    def needs_data(self) -> bool:
        """Whether batches must be run through the model to compute the scores."""
        if self.scores_channels:
            return CHANNEL_INPUTS[self.parameters[0]]
        return not self.accumulate and bool({"gradient", "activations"} & set(self.parameters))

    def __call__(self, **available: Any) -> Any:
        return self.function(**{p: available[p] for p in self.parameters})


_REGISTRY: dict[str, Criterion] = {}
_BUILT_IN: set[str] = set()


def register_criterion(
    name: str, function: Callable[..., Any] | None = None, *, accumulate: bool = False
) -> Any:
    """Registers a criterion under a name; also works as a decorator.

    Args:
        name: The name that `criterion=` will accept.
        function: Returns scores (higher stays): one per weight from `kernel` and, where needed,
            `gradient`, `activations`, `seed`; or one per channel from one of `scale`, `weights`,
            `mean_magnitude`, `nonzero`, `position_means`.
        accumulate: Add the scores up over the training steps.

    Returns:
        The function.

    Raises:
        ValueError: If a built-in criterion has this name, or a parameter is not known.
    """
    if function is None:
        return lambda f: register_criterion(name, f, accumulate=accumulate)
    if name in _BUILT_IN:
        raise ValueError(
            f"{name!r} is a built-in criterion. Choose another name than {sorted(_BUILT_IN)}"
        )
    _REGISTRY[name] = Criterion(name, function, accumulate)
    return function


def built_in(*names: str, accumulate: bool = False) -> Callable[[Callable], Callable]:
    """Decorates a criterion of this package, registered under names that users cannot replace."""

    def decorate(function: Callable) -> Callable:
        for name in names:
            register_criterion(name, function, accumulate=accumulate)
            _BUILT_IN.add(name)
        return function

    return decorate


def get_criterion(identifier: str | Callable[..., Any] | Criterion) -> Criterion:
    """Returns the criterion with this name, or wraps a function.

    Raises:
        ValueError: If there is no criterion with this name.
    """
    if isinstance(identifier, Criterion):
        return identifier
    if callable(identifier):
        return Criterion(getattr(identifier, "__name__", "custom"), identifier)
    if identifier not in _REGISTRY:
        names = {
            per: sorted(n for n, c in _REGISTRY.items() if c.scores_channels is per)
            for per in (False, True)
        }
        raise ValueError(
            f"`criterion` must be a function or one of {names[False]}, for whole channels also "
            f"{names[True]} (more by `register_criterion`). Received: criterion={identifier!r}"
        )
    return _REGISTRY[identifier]


def get_weight_criterion(identifier: str | Callable[..., Any] | Criterion) -> Criterion:
    """`get_criterion` for pruning of weights, which has no scores of whole channels.

    Raises:
        ValueError: If there is no such criterion, or it scores whole channels.
    """
    criterion = get_criterion(identifier)
    if criterion.scores_channels:
        raise ValueError(
            "Expected a criterion with one score per weight. Received: "
            f"criterion={criterion.name!r}, which scores whole channels; use it in `shrink`, "
            "`ChannelPruner` or `ChannelPruning`."
        )
    return criterion
