"""The models that are run on ARM: the operators' parity tests, and networks."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc
from benchmarks import latency
from recipes.models import build
from tests.parity import cases as sweep
from tests.parity import test_attention, test_layers, test_moves, test_recurrent
from tests.parity.conftest import randomize
from tests.quantization.operators import test_elementwise, test_normalization
from tfcompress.model.graph import Graph
from tfcompress.quantization.operators.registry import registered

_POWER_OF_TWO = (
    *("add", "subtract", "multiply", "squeeze_excite", "residual", "average_pooling_same"),
    *("silu_layer", "hard_silu_layer", "hard_sigmoid_layer", "leaky_relu_layer"),
    *("prelu_per_position", "average"),
)
_OUTPUTS_PER_MODEL = 30


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to run.

    Attributes:
        make: Builds the float model; each of its outputs is a kind.
        kinds: Names of the outputs in their alphabetical order, as rows call them.
        data: `data(count)` builds as many inputs.
        scheme: How it is quantized.
    """

    make: Callable[[], keras.Model]
    kinds: tuple[str, ...]
    data: Callable[[int], np.ndarray]
    scheme: tfc.Scheme | str = "int8"

    def is_wanted(self, words: Collection[str]) -> bool:
        return not words or any(word in kind for kind in self.kinds for word in words)


def cases() -> list[Case]:
    """All models of the comparison."""
    scheme = tfc.Scheme(
        tfc.WeightScheme(power_of_two=True), tfc.ActivationScheme(power_of_two=True)
    )
    bodies = {name: body for name, (body, _) in test_layers.CASES.items()}
    found = _table(_digits, (8, 8, 1), bodies, "", per_model=14)
    few = {name: bodies[name] for name in _POWER_OF_TWO}
    found += _table(_digits, (8, 8, 1), few, "", ", power-of-two scales", scheme)
    found += _table(_digits, (8, 8, 1), test_moves.CASES, "moves: ")
    found += _table(_digits, (8, 8, 1), _OTHERS, "")
    found += _table(_slope, (4,), test_elementwise.FUNCTIONS, "functions: ")
    found += _table(_normal(6, 6, 4), (6, 6, 4), _norms(), "norms: ")
    steps, width = test_attention.STEPS, test_attention.WIDTH
    sequences = keras.KerasTensor((None, steps, width))
    for prefix, call in {
        "products: ": test_attention.products,
        "attention: ": test_attention.attentions,
    }.items():
        found.append(_outputs(_normal(steps, width), sequences, call, prefix))
    tokens = keras.KerasTensor((None, steps), "int32")
    found.append(_outputs(_tokens, tokens, test_attention.masked, "masks: "))
    shape = test_recurrent.STEPS, test_recurrent.WIDTH
    unrolled = keras.KerasTensor((None, *shape))
    found.append(_outputs(_normal(*shape), unrolled, test_recurrent.recurrent, "recurrent: "))
    found += _sweep()
    found.append(Case(_mobilenet_v2, ("MobileNetV2-0.35, 64 px",), _images(64)))
    found.append(Case(_resnet8, ("ResNet-8, 32 px",), _images(32)))
    for packed in ("int4-packed", "int2-packed"):
        found.append(Case(_resnet8, (f"ResNet-8, 32 px, {packed}",), _images(32), packed))
    for scheme_name in ("int8", "int4", "w2a8"):
        found.append(Case(_lenet, (f"LeNet-300-100, {scheme_name}",), _gray(28), scheme_name))
    return found


def _augmented(x: keras.KerasTensor) -> keras.KerasTensor:
    """Layers that do nothing in inference."""
    for augment in (
        *(layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomTranslation(0.1, 0.1)),
        *(layers.RandomZoom(0.1), layers.RandomContrast(0.1), layers.RandomBrightness(0.1)),
        *(layers.Identity(), layers.GaussianNoise(0.1), layers.GaussianDropout(0.1)),
        *(layers.AlphaDropout(0.1), layers.ActivityRegularization(1e-3)),
    ):
        x = augment(x)
    return layers.SpatialDropout1D(0.1)(test_layers.sequence(x))


#: What the tables of the tests have not.
_OTHERS: dict[str, Callable] = {
    "augmented": _augmented,
    "leaky_relu": lambda x: layers.LeakyReLU(0.1)(test_moves.signed(x)),
    "rnn": lambda x: layers.RNN(layers.LSTMCell(5))(test_layers.sequence(x)[:, :3]),
    "adaptive_max_pool": lambda x: ops.nn.adaptive_max_pool(
        test_moves.signed(x), (3, 2), data_format="channels_last"
    ),
    "array_split": lambda x: ops.array_split(test_moves.signed(x), 3, axis=1)[0],
    "divide": lambda x: ops.divide(test_moves.signed(x), 2.0 + test_layers.stem(x)),
    "glu": lambda x: keras.activations.glu(test_moves.signed(x)),
    "negative": lambda x: ops.negative(test_moves.signed(x)),
    "square": lambda x: ops.square(test_moves.signed(x)),
    "stop_gradient": lambda x: ops.stop_gradient(test_moves.signed(x)),
}


def not_run() -> list[str]:
    """Operators of the registry that no case has, by their public names."""
    found: set[str] = set()
    for case in cases():
        for operation in Graph.from_model(case.make()).operations():
            found |= _names(operation)
    # `ops.slice` is told how many samples there are, so it has no int8 form (`ops.get_item` has),
    # and `ops.cast` converts whole numbers to float ones.
    found |= {"ops.slice", "ops.cast"}
    public = ("layers.", "ops.", "activations.")
    return sorted(name for name in registered() if name.startswith(public) and name not in found)


def _names(operation: Any) -> set[str]:
    """What the registry may call an operation, the function that it applies, the layer inside."""
    kind = type(operation).__name__
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    function = getattr(getattr(operation, "activation", None), "__name__", "linear")
    names = {f"layers.{kind}", f"ops.{snake}", f"ops.image.{snake}", f"activations.{snake}"}
    names |= {f"ops.{function}", f"activations.{function}"}
    for inner in ("layer", "forward_layer", "cell"):
        if isinstance(getattr(operation, inner, None), keras.Layer):
            names |= _names(getattr(operation, inner))
    return names


def _table(
    data: Callable[[int], np.ndarray],
    shape: Sequence[int],
    bodies: Mapping[str, Callable],
    prefix: str,
    suffix: str = "",
    scheme: tfc.Scheme | str = "int8",
    per_model: int = _OUTPUTS_PER_MODEL,
    dtype: str = "float32",
) -> list[Case]:
    """Models with an output for each of some bodies."""
    names = list(bodies)

    def case(chosen: Sequence[str]) -> Case:
        def make() -> keras.Model:
            inputs = keras.Input(shape, dtype=dtype, name="x")
            model = keras.Model(inputs, {name: bodies[name](inputs) for name in chosen})
            randomize(model)
            return model

        return Case(make, tuple(prefix + n + suffix for n in sorted(chosen)), data, scheme)

    return [case(names[i : i + per_model]) for i in range(0, len(names), per_model)]


def _outputs(
    data: Callable[[int], np.ndarray],
    spec: keras.KerasTensor,
    call: Callable[[keras.KerasTensor], dict[str, keras.KerasTensor]],
    prefix: str,
) -> Case:
    """A model of the outputs that a function gives."""

    def make() -> keras.Model:
        inputs = keras.Input(spec.shape[1:], dtype=spec.dtype, name="x")
        model = keras.Model(inputs, call(inputs))
        randomize(model)
        return model

    return Case(make, tuple(prefix + name for name in sorted(call(spec))), data)


def _sweep() -> list[Case]:
    """The calls of the sweep that run in int8, by kind and input."""
    found = []
    for kind, listed in sweep.KINDS.items():
        bodies: dict[str, dict[str, Callable]] = {}
        for name, case in listed.items():
            if case.outcome == sweep.INT8:
                bodies.setdefault(case.given, {})[name] = case.make
        for given, chosen in bodies.items():
            data = functools.partial(sweep.samples, given)
            dtype = "int32" if given in sweep.INTEGERS else "float32"
            shape = sweep.INPUTS[given]
            found += _table(data, shape, chosen, f"sweep, {kind}: ", dtype=dtype)
    return found


def _norms() -> dict[str, Callable]:
    """The norms, each of a convolution of its own."""
    return {
        n: lambda x, f=f: f(layers.Conv2D(8, 3)(x)) for n, f in test_normalization.NORMS.items()
    }


def _mobilenet_v2() -> keras.Model:
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    latency.settle_batch_norm(model, _images(64)(32))
    return model


def _resnet8() -> keras.Model:
    model = build("resnet8", (32, 32, 3), 10)
    latency.settle_batch_norm(model, _images(32)(32))
    return model


def _lenet() -> keras.Model:
    return build("lenet300", (28, 28, 1), 10)


def _gray(size: int) -> Callable[[int], np.ndarray]:
    return lambda count: _images(size)(count)[..., :1]


def _digits(count: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:count, :, :, None] / 16.0).astype(np.float32)


def _images(size: int) -> Callable[[int], np.ndarray]:
    def draw(count: int) -> np.ndarray:
        values = np.random.default_rng(0).uniform(0, 255, (count, size, size, 3))
        return values.astype(np.float32)

    return draw


def _normal(*shape: int) -> Callable[[int], np.ndarray]:
    def draw(count: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)

    return draw


def _slope(count: int) -> np.ndarray:
    """Four values each, from one end of a range to the other."""
    values = np.random.default_rng(0).permutation(np.linspace(-2.1, 3.2, 4 * count))
    return values.reshape(-1, 4).astype(np.float32)


def _tokens(count: int) -> np.ndarray:
    """Sentences of 3 to 10 tokens, padded with zeros."""
    steps = test_attention.STEPS
    ids = np.random.default_rng(0).integers(1, 40, (count, steps)).astype(np.int32)
    for sentence, length in zip(ids, np.resize(np.arange(3, steps + 1), count), strict=True):
        sentence[length:] = 0
    return ids
