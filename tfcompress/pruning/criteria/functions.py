"""What a weight is worth: criteria are functions of a kernel, its gradient and its activations.

A criterion returns one score per weight, higher for what should stay. Patterns sum the scores of
a group (a block, a channel), so one criterion serves every granularity. The **names** of the
function's parameters say what it needs:

| parameter | what it receives |
|---|---|
| `kernel` | the kernel |
| `gradient` | gradient of a batch's loss with respect to the kernel; the function is called once per batch and its scores are averaged |
| `activations` | the layer's output, averaged over positions: shape `(examples, ...)`, where `...` broadcasts against the kernel (size 1 on every axis that is not an output axis) |
| `seed` | a tuple of integers that is different for every kernel and the same at every step |

```python
tfc.pruning.register_criterion("signal", lambda kernel, gradient: abs(kernel) * gradient**2)
```
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

_PARAMETERS = ("kernel", "gradient", "activations", "seed")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A score function with what it needs.

    Attributes:
        name: Its name in the registry.
        function: Scores from the parameters in `needs`.
        accumulate: Whether the scores of all training steps are added up, with the optimizer's
            own displacement of the kernel (negated) in place of the gradient.
    """

    name: str
    function: Callable[..., Any]
    accumulate: bool = False

    def __post_init__(self):
        unknown = [p for p in self.parameters if p not in _PARAMETERS]
        if unknown or "kernel" not in self.parameters:
            raise ValueError(
                "A criterion is a function whose parameters are named `kernel` and, where it "
                "needs them, `gradient`, `activations` and `seed`. "
                f"Received: {self.name!r} with parameters {self.parameters}"
            )
        if self.accumulate and set(self.parameters) != {"kernel", "gradient"}:
            raise ValueError(
                "A criterion that accumulates over training takes exactly `kernel` and "
                f"`gradient`. Received: {self.name!r} with parameters {self.parameters}"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)

    @property
    def needs_data(self) -> bool:
        """Whether batches must be run through the model to compute the scores."""
        return not self.accumulate and bool({"gradient", "activations"} & set(self.parameters))

    def __call__(self, **available: Any) -> Any:
        return self.function(**{p: available[p] for p in self.parameters})


_REGISTRY: dict[str, Criterion] = {}


def register_criterion(
    name: str, function: Callable[..., Any] | None = None, *, accumulate: bool = False
) -> Any:
    """Registers a criterion under a name; also works as a decorator.

    Args:
        name: The name that `criterion=` will accept.
        function: A function of `kernel` and, where needed, `gradient`, `activations`, `seed`,
            which returns one score per weight (higher stays).
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
        raise ValueError(
            f"`criterion` must be a function or one of {sorted(_REGISTRY)} (more by "
            f"`register_criterion`). Received: criterion={identifier!r}"
        )
    return _REGISTRY[identifier]


def magnitude(kernel):
    """`|w|`; over a group, its L1 norm (Han 2015, https://arxiv.org/abs/1506.02626)."""
    return np.abs(kernel)


def squared_magnitude(kernel):
    """`w²`; over a group, the square of its L2 norm, which ranks like the norm."""
    return np.square(kernel)


def random(kernel, seed):
    """Uniform in [0, 1), the same at every step: the control that a criterion has to beat."""
    return np.random.default_rng(list(seed)).random(kernel.shape, np.float32)


def taylor(kernel, gradient):
    """`|w · ∂L/∂w|`, first-order change of the loss when the weight goes.

    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771.
    """
    return abs(kernel * gradient)


def movement(kernel, gradient):
    """`-w · ∂L/∂w`, positive where training moves the weight away from zero.

    Added up over the training steps (Sanh et al. 2020, https://arxiv.org/abs/2005.07683). During
    training the gradient is read off the optimizer's own step, `-(w_new - w_old)`: with SGD that
    is the gradient times the learning rate, as in the paper.
    """
    return -kernel * gradient


def snip(kernel, gradient):
    """`|w · ∂L/∂w|` at initialization, the connection sensitivity (up to one common factor).

    Lee et al. 2019, https://arxiv.org/abs/1810.02340. Meant for one update before training, with
    `scope="global"`: `ConstantSparsity(s, begin_step=0, end_step=0)`.
    """
    return abs(kernel * gradient)


def fisher(kernel, gradient):
    """`w² · E[(∂L/∂w)²] / 2`: optimal brain damage with the diagonal Fisher information.

    LeCun et al. 1989; Theis et al. 2018, https://arxiv.org/abs/1801.05787. The expectation runs
    over batches; a batch size of 1 gives the empirical Fisher information.
    """
    return 0.5 * np.square(kernel) * np.square(gradient)


def entropy(kernel, activations):
    """`|w| · H`, where `H` is the entropy in nats of the output channel that the weight feeds.

    A channel that answers the same to every example carries no information, and its weights go
    first (Luo and Wu 2017, https://arxiv.org/abs/1706.05791).
    """
    return np.abs(kernel) * channel_entropy(activations)


def channel_entropy(activations: np.ndarray, num_bins: int = 32) -> np.ndarray:
    """Entropy of each channel's histogram over the examples.

    `H = -Σ p_i ln p_i` over `num_bins` equal bins between the channel's minimum and maximum.

    Args:
        activations: Array of shape `(examples, ...)`.
        num_bins: Number of bins.

    Returns:
        Array of shape `...`, in nats; 0 for a constant channel.
    """
    values = np.asarray(activations, np.float64).reshape(len(activations), -1)
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum(((values - low) / width * num_bins).astype(int), num_bins - 1)
    channels = values.shape[1]
    counts = np.bincount(
        (bins + num_bins * np.arange(channels)).ravel(), minlength=num_bins * channels
    ).reshape(channels, num_bins)
    p = counts / len(values)
    h = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    return h.reshape(np.shape(activations)[1:]).astype(np.float32)


_BUILT_IN: frozenset[str] = frozenset()
register_criterion("magnitude", magnitude)
register_criterion("l1", magnitude)
register_criterion("l2", squared_magnitude)
register_criterion("random", random)
register_criterion("taylor", taylor)
register_criterion("movement", movement, accumulate=True)
register_criterion("snip", snip)
register_criterion("fisher", fisher)
register_criterion("entropy", entropy)
_BUILT_IN = frozenset(_REGISTRY)
