"""The low-rank forms of a layer: their factors, cost and error."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers

from tfcompress.factorization.decompositions import (
    Metric,
    Spectrum,
    Tucker2,
    spatial_kernels,
    spatial_matrix,
)

METHODS = ("svd", "spatial", "tucker2")

# Their weights may have several axes, but are multiplied with value by value.
_ELEMENTWISE = (
    *(layers.PReLU, layers.Normalization, layers.BatchNormalization, layers.LayerNormalization),
    *(layers.RMSNormalization, layers.GroupNormalization),
)

# Ranks that are tried between 1 and the largest that pays.
_STEPS = 24


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to factorize one layer.

    Attributes:
        method: `"svd"`, `"spatial"` or `"tucker2"`.
        ranks: One rank, or the two of Tucker-2.
        error: Relative squared error of the kernel, in the metric if there is one.
        macs: Multiply-accumulates of an example, all calls of the layer together.
        parameters: Weights of the kernels.
    """

    method: str
    ranks: tuple[int, ...]
    error: float
    macs: int
    parameters: int


class Forms:
    """The forms of one layer.

    Args:
        layer: A built Dense or convolution layer for which `reason` returns `None`.
        shapes: `(input shape, output shape)` of every call, batch axis included.
        methods: Which forms may be used.
        metrics: Method → the metric of the layer's inputs; a method without one is not used.
            `None` for the plain norm and all methods.
    """

    def __init__(
        self,
        layer: keras.Layer,
        shapes: Sequence[tuple[tuple, tuple]],
        methods: Sequence[str] = METHODS,
        metrics: dict[str, Metric] | None = None,
    ):
        self.layer = layer
        self.shapes = shapes
        self.kernel = layer.kernel.numpy().astype(np.float64)
        self.methods = [m for m in methods if m in possible(layer) and _known(m, metrics)]
        self.metrics = metrics or {}
        self.parameters = self.kernel.size
        self.macs = sum(self.parameters * _positions(output) for _, output in shapes)
        self._spectra: dict[str, Spectrum] = {}
        self._tucker: Tucker2 | None = None

    def spectrum(self, method: str) -> Spectrum:
        """The decomposition behind `"svd"` or `"spatial"`."""
        if method not in self._spectra:
            matrix = self.kernel.reshape(-1, self.kernel.shape[-1])
            if method == "spatial":
                matrix = spatial_matrix(self.kernel)
            self._spectra[method] = Spectrum.of(matrix, self.metrics.get(method))
        return self._spectra[method]

    def tucker(self) -> Tucker2:
        if self._tucker is None:
            self._tucker = Tucker2.of(self.kernel)
        return self._tucker

    def form(self, method: str, ranks: tuple[int, ...]) -> Form:
        """One form, whether it pays or not."""
        if method == "tucker2":
            error = self.tucker().error(*ranks)
        else:
            error = float(self.spectrum(method).errors()[ranks[0]])
        sizes = _sizes(self.kernel.shape, method, ranks)
        strides = getattr(self.layer, "strides", ())
        macs = sum(
            size * positions
            for before, after in self.shapes
            for size, positions in zip(
                sizes, _places(method, before, after, strides, len(sizes)), strict=True
            )
        )
        return Form(method, tuple(ranks), error, macs, sum(sizes))

    def pays(self, form: Form) -> bool:
        """Whether a form takes fewer weights and fewer multiply-accumulates than the layer."""
        return form.parameters < self.parameters and form.macs < self.macs

    def paying(self) -> list[Form]:
        """Forms of every method at ranks spread over those that pay."""
        found = []
        for method in self.methods:
            for ranks in self._ranks(method):
                form = self.form(method, ranks)
                if self.pays(form):
                    found.append(form)
        return found

    def with_energy(self, energy: float) -> list[Form]:
        """The smallest form of every method that keeps this share of the energy."""
        found = []
        for method in self.methods:
            if method == "tucker2":
                form = self.form(method, self.tucker().ranks_for(energy))
                # Each unfolding keeps the share, but both together may not.
                share = energy
                while 1.0 - form.error < energy - 1e-12 and share < 1.0 - 1e-9:
                    share = (1.0 + share) / 2
                    form = self.form(method, self.tucker().ranks_for(share))
            else:
                form = self.form(method, (self.spectrum(method).rank_for(energy),))
            found.append(form)
        return found

    def largest(self, method: str) -> tuple[int, ...]:
        """The largest ranks that a method can have."""
        if method == "tucker2":
            return self.kernel.shape[2], self.kernel.shape[3]
        return (self.spectrum(method).values.size,)

    def _ranks(self, method: str) -> list[tuple[int, ...]]:
        if method == "tucker2":
            shares = 1.0 - np.geomspace(1e-3, 0.95, 2 * _STEPS)
            return sorted({self.tucker().ranks_for(float(share)) for share in shares})
        full = self.form(method, (1,))
        most = min(self.largest(method)[0], math.ceil(self.parameters / full.parameters))
        return [(int(r),) for r in np.unique(np.linspace(1, most, _STEPS).round())]

    def build(self, form: Form, taken: set[str]) -> list[tuple[keras.Layer, np.ndarray]]:
        """The unbuilt layers of a form in their order, each with its kernel in float32.

        The last one keeps the layer's name, bias and activation; the names of the others, `..._in`
        and `..._core`, are counted up past those in `taken`, and join them.
        """
        kernels: tuple[np.ndarray, ...]
        if form.method == "tucker2":
            kernels = self.tucker().cut(*form.ranks)
        else:
            a, b = self.spectrum(form.method).cut(*form.ranks)
            if form.method == "spatial":
                kernels = spatial_kernels(a, b, self.kernel.shape)
            else:
                ones = (1,) * (self.kernel.ndim - 2)
                kernels = a.reshape(*self.kernel.shape[:-1], -1), b.reshape(*ones, *b.shape)
        config = self.layer.get_config()
        made = []
        for i, kernel in enumerate(kernels):
            own = {**config, **_own_config(self.layer, form.method, i, kernel.shape)}
            # A constraint applies to the whole kernel, not to a factor.
            own["kernel_constraint"] = None
            # The weights are assigned; an initializer may fit the shape of the layer alone.
            own["kernel_initializer"] = "glorot_uniform"
            if i < len(kernels) - 1:
                suffix = ("in", "core")[i]
                own.update(
                    name=_free_name(f"{self.layer.name}_{suffix}", taken),
                    use_bias=False,
                    activation="linear",
                    activity_regularizer=None,
                )
            made.append((type(self.layer).from_config(own), kernel.astype(np.float32)))
        return made


def _free_name(stem: str, taken: set[str]) -> str:
    counted = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
    name = next(name for name in counted if name not in taken)
    taken.add(name)
    return name


def has_kernel(layer: keras.Layer) -> bool:
    """Whether a layer, or one inside it, has a matrix among its weights."""
    return not isinstance(layer, _ELEMENTWISE) and any(len(v.shape) > 1 for v in layer.weights)


def reason(layer: keras.Layer) -> str | None:
    """Why a layer with a kernel has no low-rank form; `None` where it has one.

    Raises:
        ValueError: The kernel of a layer that could have one is not finite.
    """
    if type(layer) not in (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D):
        return f"no low-rank form of {type(layer).__name__} is known"
    if getattr(layer, "groups", 1) != 1:
        return "its channels are in groups"
    if getattr(layer, "data_format", None) == "channels_first":
        return "its channels come first"
    if min(layer.kernel.shape[-2:]) < 2:
        return "it has a single input or output channel"
    kernel = layer.kernel.numpy()
    if not np.all(np.isfinite(kernel)):
        raise ValueError(
            f"Expected finite kernels. Received: NaN or infinity in the kernel of {layer.name!r}. "
            "Take the weights from before the training diverged."
        )
    if not np.any(kernel):
        return "its kernel is all zeros"
    return None


def possible(layer: keras.Layer) -> tuple[str, ...]:
    """The methods that fit a layer's kind."""
    if type(layer) is not layers.Conv2D or max(layer.kernel_size) == 1:
        return ("svd",)
    return METHODS if min(layer.kernel_size) > 1 else ("svd", "tucker2")


def _known(method: str, metrics: dict[str, Metric] | None) -> bool:
    return metrics is None or method in metrics


def _sizes(shape: tuple[int, ...], method: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Weights of the kernels of a form."""
    inputs, outputs = shape[-2:]
    if method == "svd":
        return math.prod(shape[:-1]) * ranks[0], ranks[0] * outputs
    if method == "spatial":
        return shape[0] * inputs * ranks[0], shape[1] * ranks[0] * outputs
    first, second = ranks
    return inputs * first, shape[0] * shape[1] * first * second, second * outputs


def _positions(shape: tuple) -> int:
    """Positions of a channels-last tensor; unknown sizes count once."""
    return math.prod(n or 1 for n in shape[1:-1])


def _places(
    method: str, before: tuple, after: tuple, strides: tuple, count: int
) -> tuple[int, ...]:
    """At how many positions each kernel of a form is applied."""
    output = _positions(after)
    if method == "svd":
        return (output,) * count
    if method == "spatial":
        # The first kernel has strided along the height alone.
        return (after[1] or 1) * (before[2] or strides[1]), output
    first = _positions(before) if None not in before[1:-1] else output * math.prod(strides)
    return first, output, output


def _own_config(layer: keras.Layer, method: str, index: int, shape: tuple[int, ...]) -> dict:
    if isinstance(layer, layers.Dense):
        return {"units": shape[-1]}
    rank = len(shape) - 2
    own = {"filters": shape[-1], "kernel_size": shape[:rank]}
    strides, dilation = tuple(layer.strides), tuple(layer.dilation_rate)
    keep: Callable[[int], bool]
    if method == "spatial":
        keep = lambda axis: axis == index  # noqa: E731
    else:
        place = 1 if method == "tucker2" else 0
        keep = lambda axis: index == place  # noqa: E731
    own["strides"] = tuple(s if keep(a) else 1 for a, s in enumerate(strides))
    own["dilation_rate"] = tuple(d if keep(a) else 1 for a, d in enumerate(dilation))
    return own
