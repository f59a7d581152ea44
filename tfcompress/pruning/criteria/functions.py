"""The built-in criteria, each a function under its names; the registry says what they may take.

A new one is a decorated function here and its row in the tests of formulas.
"""

from __future__ import annotations

import numpy as np

from tfcompress.pruning.criteria.registry import built_in

# ---- one score per weight ------------------------------------------------------------------------


@built_in("magnitude", "l1")
def magnitude(kernel):
    """`|w|`; over a group, its L1 norm (Han 2015, https://arxiv.org/abs/1506.02626)."""
    return np.abs(kernel)


@built_in("l2")
def squared_magnitude(kernel):
    """`w²`; over a group, the square of its L2 norm, which ranks like the norm."""
    return np.square(kernel)


@built_in("random")
def random(kernel, seed):
    """Uniform in [0, 1), the same at every step: the baseline of comparisons."""
    return np.random.default_rng(list(seed)).random(kernel.shape, np.float32)


@built_in("taylor")
def taylor(kernel, gradient):
    """`|w · ∂L/∂w|`, first-order change of the loss when the weight is removed.

    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771.
    """
    return abs(kernel * gradient)


@built_in("movement", accumulate=True)
def movement(kernel, gradient):
    """`-w · ∂L/∂w`, positive where training moves the weight away from zero.

    Added up over the training steps (Sanh et al. 2020, https://arxiv.org/abs/2005.07683). During
    training the gradient is read off the optimizer's own step, `-(w_new - w_old)`: with SGD that
    is the gradient times the learning rate, as in the paper.
    """
    return -kernel * gradient


@built_in("snip")
def snip(kernel, gradient):
    """`|w · ∂L/∂w|` at initialization, the connection sensitivity (up to one common factor).

    Lee et al. 2019, https://arxiv.org/abs/1810.02340. Meant for one update before training, with
    `scope="global"`: `ConstantSparsity(s, begin_step=0, end_step=0)`.
    """
    return abs(kernel * gradient)


@built_in("fisher")
def fisher(kernel, gradient):
    """`w² · E[(∂L/∂w)²] / 2`: optimal brain damage with the diagonal Fisher information.

    LeCun et al. 1989; Theis et al. 2018, https://arxiv.org/abs/1801.05787. The expectation runs
    over batches; a batch size of 1 gives the empirical Fisher information.
    """
    return 0.5 * np.square(kernel) * np.square(gradient)


@built_in("entropy")
def entropy(kernel, activations):
    """`|w| · H`, where `H` is the entropy in nats of the output channel that the weight feeds.

    A channel whose output is the same for every example carries no information; its weights have
    the lowest scores (Luo and Wu 2017, https://arxiv.org/abs/1706.05791).
    """
    return np.abs(kernel) * channel_entropy(activations)


# ---- one score per channel -----------------------------------------------------------------------


@built_in("batch_norm_scale")
def batch_norm_scale(scale):
    """`|γ|` of a batch norm that the channels pass.

    Network slimming (Liu et al. 2017, https://arxiv.org/abs/1708.06519): train with an L1 penalty
    on γ, then shrink.

    Args:
        scale: `(channels,)`.
    """
    return np.abs(scale)


@built_in("geometric_median")
def geometric_median(weights):
    """`Σ_k ‖w_j − w_k‖₂`: a filter near the geometric median of all can be replaced by others.

    FPGM (He et al. 2019, https://arxiv.org/abs/1811.00250).

    Args:
        weights: `(channels, weights)` of one kernel.
    """
    squares = np.square(weights).sum(1)
    distances = squares[:, None] + squares[None] - 2.0 * weights @ weights.T
    return np.sqrt(np.maximum(distances, 0.0)).sum(1)


@built_in("activation_mean")
def activation_mean(mean_magnitude):
    """Mean `|a|` of what the following layers read, over examples and positions.

    Molchanov et al. 2017, https://arxiv.org/abs/1611.06440.
    """
    return mean_magnitude


@built_in("activation_entropy")
def activation_entropy(position_means):
    """Entropy in nats of each channel's mean over positions, in 32 bins over the examples.

    Luo and Wu 2017, https://arxiv.org/abs/1706.05791.

    Args:
        position_means: `(examples, channels)`.
    """
    return channel_entropy(position_means)


@built_in("apoz")
def nonzero_share(nonzero):
    """Share of activations that are not zero: 1 − APoZ.

    APoZ is the average percentage of zeros (Hu et al. 2016, https://arxiv.org/abs/1607.03250).
    """
    return nonzero


# ---- what several of them use --------------------------------------------------------------------


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
