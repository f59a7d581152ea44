"""Layers that run their own `call` with the transformed kernels.

For every layer class of the kernel table a subclass `Compressed<Name>` is generated and
registered when this module is imported, so that a saved model loads in a fresh process. Being a
subclass it keeps `isinstance`, attributes, weight names and a place inside `Bidirectional` or
`TimeDistributed`. The substitution is public API: `keras.StatelessScope`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import layers

from tfcompress.model.einsum_layer import SizedEinsumDense
from tfcompress.model.empty_batches import unwritten, zero_without_samples
from tfcompress.model.kernels import KERNELS, kernel_specs
from tfcompress.model.linking import Linked
from tfcompress.model.stepwise import Stepwise
from tfcompress.model.transforms import TransformedWeights, WeightTransform

_PACKAGE = "tfcompress"

#: Layer class → its generated compressed subclass.
COMPRESSED: dict[type, type[keras.Layer]] = {}


class Compressed(Stepwise, Linked):
    """Mixin that marks a generated class; `transformed` holds the chains of its variables."""

    transformed: TransformedWeights
    # Call index → what its weights are at all steps of a loop. Behind a function, for Keras would
    # track what it holds.
    _over_steps: Callable[[int], Any] | None = None

    @contextlib.contextmanager
    def over_steps(self, calls: Sequence[int], training: bool) -> Iterator[None]:
        common = {
            i: self.transformed(call_index=i, in_codes=_scales(self), training=training)
            for i in calls
        }
        self._over_steps = lambda call_index: common[call_index]
        try:
            yield
        finally:
            self._over_steps = None

    @property
    def transforms(self) -> dict[str, list[WeightTransform]]:
        return {name: list(chain) for name, chain in self.transformed.chains.items()}

    def effective_weights(self, call_index: int = 0) -> dict[str, Any]:
        """What a forward pass in inference reads: `{variable name: float32 tensor}`."""
        return self.transformed(call_index=call_index, training=False)[0]

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self.transformed.link(self, inputs, call_index)

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        self.transformed.link_rounding(quantizer, call_index)


def compressed_variables(layer: keras.Layer) -> dict[str, keras.Variable]:
    """The variables of `layer` that a chain may transform: its kernels and its bias."""
    names = {spec.name for spec in kernel_specs(layer)} | {"bias"}
    owner = getattr(layer, "cell", layer)
    return {v.name: v for v in owner.weights if v.name in names and "transformed" not in v.path}


def generate(
    cls: type[keras.Layer],
    package: str = _PACKAGE,
    base: type[keras.Layer] | None = None,
) -> type[keras.Layer]:
    """Makes, registers and enters the compressed subclass of a layer class.

    Args:
        cls: The layer class, which `kernel_specs` knows.
        package: Under which it is registered for saving.
        base: What it inherits from; a subclass of `cls` that computes the same.
    """
    depthwise = unwritten(cls)

    def __init__(
        self: Any, *args: Any, transforms: dict[str, list[Any]] | None = None, **kwargs: Any
    ) -> None:
        cls.__init__(self, *args, **kwargs)
        restore = keras.saving.deserialize_keras_object
        chains = {
            name: [t if isinstance(t, WeightTransform) else restore(t) for t in chain]
            for name, chain in (transforms or {}).items()
        }
        self.transformed = TransformedWeights(chains)

    @functools.wraps(cls.build)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.build(self, *args, **kwargs)
        self.transformed.attach(self, compressed_variables(self))
        if not self.trainable:
            # Keras hands on what is set, not what a layer was made with.
            self.transformed.trainable = False
        self.built = True

    @functools.wraps(cls.call)
    def call(self: Any, *args: Any, call_index: int = 0, **kwargs: Any) -> Any:
        if self._over_steps is None:
            values, rounded = self.transformed(call_index=call_index, in_codes=_scales(self))
        else:
            values, rounded = self._over_steps(call_index)
        integer_sum = None if rounded is None else rounded.integer_sum
        variables = compressed_variables(self)
        if depthwise is not None:
            kernel = values.get(depthwise, variables[depthwise].value)
            values = {**values, depthwise: zero_without_samples(kernel, args[0])}
        mapping = [(variables[name], value) for name, value in values.items()]
        if integer_sum is not None:
            args = (integer_sum.to_codes(args[0]), *args[1:])
        behind = None if integer_sum is None else _activation_behind(self)
        inside = contextlib.nullcontext() if behind is None else without_activation(self)
        with keras.StatelessScope(mapping, collect_losses=True) as scope, inside:
            outputs = cls.call(self, *args, **kwargs)
        _apply_updates(self, scope, skip=[variable for variable, _ in mapping])
        if integer_sum is not None:
            outputs = integer_sum.from_sums(outputs)
        return outputs if behind is None else behind(outputs)

    call.__signature__ = with_call_index(cls.call)  # type: ignore[attr-defined]

    def get_config(self: Any) -> dict[str, Any]:
        save = keras.saving.serialize_keras_object
        chains = self.transformed.chains
        saved = {name: [save(t) for t in chain] for name, chain in chains.items()}
        return {**cls.get_config(self), "transforms": saved}

    members = {
        "__init__": __init__,
        "build": build,
        "call": call,
        "get_config": get_config,
        "__module__": __name__ if package == _PACKAGE else cls.__module__,
        "keras_class": cls,
        "__doc__": f"`{cls.__name__}` that reads its kernels through weight transforms.",
    }
    if cls.compute_output_spec is not keras.Layer.compute_output_spec:
        members["compute_output_spec"] = _without_call_index(cls.compute_output_spec)
    generated = type(f"Compressed{cls.__name__}", (Compressed, base or cls), members)
    COMPRESSED[cls] = keras.saving.register_keras_serializable(package)(generated)
    return generated


def _without_call_index(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is given the arguments of `call`, which `call_index` is one of."""

    @functools.wraps(method)
    def without(self: Any, *args: Any, call_index: int = 0, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return without


def _scales(layer: keras.Layer) -> bool:
    """Whether a layer can compute in codes: its output is a sum, cut off by its activation."""
    activation = getattr(layer, "activation", None)
    cut_off = (None, keras.activations.linear, keras.activations.relu, keras.activations.relu6)
    # 16 bits do not hold the codes' sums.
    return activation in cut_off and layer.compute_dtype == "float32"


def _activation_behind(layer: Any) -> Callable[[Any], Any] | None:
    """The activation that reads values where a layer computes in codes: it cuts off at a value."""
    activation = getattr(layer, "activation", None)
    return activation if activation is keras.activations.relu6 else None


@contextlib.contextmanager
def without_activation(layer: Any) -> Iterator[None]:
    """The layer without its activation function, for a while."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        yield
        return
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def with_call_index(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of `call` with the keyword `call_index`, which Keras binds arguments by."""
    signature = inspect.signature(call)
    extra = inspect.Parameter("call_index", inspect.Parameter.KEYWORD_ONLY, default=0)
    parameters = list(signature.parameters.values())
    at = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        at -= 1
    return signature.replace(parameters=[*parameters[:at], extra, *parameters[at:]])


def _apply_updates(layer: keras.Layer, scope: keras.StatelessScope, skip: list) -> None:
    """Does for real what the scope only recorded: new states (dropout seeds) and losses."""
    skipped = {id(variable) for variable in skip}
    for variable in layer.variables:
        if id(variable) not in skipped:
            value = scope.get_current_value(variable)
            if value is not None:
                variable.assign(value)
    for loss in scope.losses:
        layer.add_loss(loss)


for _cls in KERNELS:
    globals()[f"Compressed{_cls.__name__}"] = generate(_cls)
CompressedEinsumDense = generate(layers.EinsumDense, base=SizedEinsumDense)
COMPRESSED[SizedEinsumDense] = CompressedEinsumDense


def is_compressed(layer: Any) -> bool:
    return isinstance(layer, Compressed)


def compressed_class(layer: keras.Layer) -> type[keras.Layer] | None:
    """The compressed class for exactly this kind of layer; `None` for a user's own subclass.

    A subclass may do anything with its kernel, so it is never replaced by its base class.
    """
    if is_compressed(layer):
        return type(layer)
    return COMPRESSED.get(type(layer))


def compress(layer: keras.Layer, transforms: dict[str, list[WeightTransform]]) -> keras.Layer:
    """Returns a new, unbuilt compressed layer of the same configuration with `transforms` added.

    An already compressed layer keeps its transforms; the new ones join its chains in their order.

    Raises:
        TypeError: `layer` is of a class that the kernel table does not know.
    """
    cls = compressed_class(layer)
    if cls is None:
        raise TypeError(
            f"Expected a layer of the kernel table. Received: {layer.name!r} of type "
            f"{type(layer).__name__}. Leave it out of the configuration (scheme None)."
        )
    config = layer.get_config()
    save = keras.saving.serialize_keras_object
    chains = config.pop("transforms", {})
    for name, added in transforms.items():
        chains[name] = [*chains.get(name, []), *(save(t) for t in added)]
    old = layer.transforms if isinstance(layer, Compressed) else {}
    classes: dict[str, type] = {}
    for transform in (t for chain in (*old.values(), *transforms.values()) for t in chain):
        classes.update(transform.custom_objects())
    with keras.saving.custom_object_scope(classes):
        return cls.from_config({**config, "transforms": chains})
