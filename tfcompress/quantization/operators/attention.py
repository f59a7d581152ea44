"""Attention: projections, a product of queries and keys, a softmax, a product with the values.

The factor of the scores (1/√d) is an option of LiteRT's SOFTMAX, so nothing is rounded for it. A
mask acts on the codes of the scores: what it masks gets the lowest one.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.einsum_layer import SizedEinsumDense
from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.products import Product
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.tracing import traced

# How far below all others a masked score is, in the softmax's units: it gets e^−8 of their weight.
_MARGIN = 8.0


@keras.saving.register_keras_serializable(package="tfcompress")
class ScaledSoftmax(layers.Layer):
    """softmax(factor · x) over the last axis.

    Args:
        factor: Positive.
        trained: Whether the factor is times a weight `scale`, as in `Attention(use_scale=True)`.
    """

    def __init__(self, factor: float = 1.0, trained: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor, self.trained = float(factor), bool(trained)

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones") if (
            self.trained) else None  # fmt: skip
        self.built = True

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        factor = self.factor if self.scale is None else self.factor * self.scale
        return tf.nn.softmax(inputs * tf.cast(factor, inputs.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def value(self) -> float:
        """The factor as the file holds it."""
        found = self.factor if self.scale is None else self.factor * float(self.scale.numpy())
        if not found > 0:
            raise ValueError(
                f"Expected a positive factor of the attention scores. Received: {found:g} in the "
                f"layer {self.name!r}, for which LiteRT's softmax overflows."
            )
        return found

    def stripped(self) -> list:
        plain = [layers.Rescaling(self.value(), name=f"{self.name}_scale")] if (
            self.trained or self.factor != 1) else []  # fmt: skip
        return [*plain, layers.Softmax(name=self.name)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor, "trained": self.trained}


@keras.saving.register_keras_serializable(package="tfcompress")
class KeepWhere(layers.Layer):
    """x where a mask is true, else 0. Called on `[x, mask]`; the mask is broadcast against x."""

    channels_like = layers.Identity

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        x, mask = inputs
        return tf.where(tf.cast(mask, tf.bool), x, tf.zeros((), x.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]

    def stripped(self) -> list:
        return [lambda inputs: ops.where(inputs[1], inputs[0], 0.0)]


def _lower_softmax(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """SOFTMAX, whose option `beta` is the factor."""
    return tf.nn.softmax(x)


register(
    ScaledSoftmax,
    spec=OperatorSpec(
        role=Role.FIXED,
        fixed_range=(0.0, 255 / 256),
        lower=_lower_softmax,
        options=lambda layer: {"beta": layer.value()},
    ),
)
register(KeepWhere, spec=OperatorSpec(role=Role.MOVE, takes_integers=True))


def _attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    equations: tuple[str, str],
    factor: float = 1.0,
    mask: Any = None,
    causal: bool = False,
    dropout: float = 0.0,
    trained: bool = False,
) -> tuple[Any, Any]:
    """`(attended values, weights)`.

    Args:
        query: First operand of the first equation.
        key: Its second operand.
        value: Second operand of the second equation, after the weights.
        equations: That of the scores and that of the result.
        factor: Of the scores.
        mask: True where a key may be attended to, broadcast against the scores.
        causal: Mask later keys too.
        dropout: Rate at which weights are dropped in training.
        trained: Whether the factor is times a trained weight.
    """
    masked = [] if mask is None else [mask]
    scores = Product(equations[0], margin=_MARGIN / factor, causal=causal, name="scores")(
        [query, key, *masked]
    )
    weights = ScaledSoftmax(factor, trained, name="weights")(scores)
    dropped = layers.Dropout(dropout, name="dropout")(weights) if dropout else weights
    return Product(equations[1], name="attended")([dropped, value]), weights


def _projected(projection: layers.EinsumDense, x: Any) -> Any:
    """What a projection gives, all sizes known."""
    # The layer is of a copy that is made for tracing. It stays the one that holds the weights.
    object.__setattr__(projection, "__class__", SizedEinsumDense)
    return projection(x)


def _with_heads(mask: Any, rank: int) -> Any:
    """A mask of (batch, queries, keys) with an axis of heads."""
    while mask is not None and len(mask.shape) < rank:
        mask = ops.expand_dims(mask, axis=-3)
    return mask


def _multi_head(
    layer: Any,
    query: Any,
    value: Any,
    key: Any = None,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
) -> Any:
    """MultiHeadAttention and GroupedQueryAttention."""
    key = value if key is None else key
    window = getattr(layer, "_sliding_window", getattr(layer, "sliding_window", None))
    masks = {
        "query_mask": query_mask,
        "value_mask": value_mask,
        "key_mask": key_mask,
        "attention_mask": attention_mask,
    }
    mask = None
    if window is not None or any(given is not None for given in masks.values()):
        mask = layer._compute_attention_mask(query, value, **masks)
    has_gate = getattr(layer, "_use_gate", getattr(layer, "use_gate", False))
    gate = _projected(layer._gate_dense, query) if has_gate else None
    query, key = _projected(layer._query_dense, query), _projected(layer._key_dense, key)
    value = _projected(layer._value_dense, value)
    repeats = getattr(layer, "num_repeats", 1)
    if repeats > 1:
        key, value = (ops.repeat(x, repeats, axis=2) for x in (key, value))
    is_grouped = isinstance(layer, layers.GroupQueryAttention)
    equation = layer._dot_product_equation
    if not is_grouped:
        # Keras writes it for (key, query).
        left, result = equation.split("->")
        equation = f"{','.join(reversed(left.split(',')))}->{result}"
    name = "_inverse_sqrt_head_dim" if is_grouped else "_inverse_sqrt_key_dim"
    output, scores = _attend(
        query,
        key,
        value,
        equations=(equation, layer._combine_equation),
        factor=float(getattr(layer, name)),
        mask=_with_heads(mask, len(query.shape)),
        causal=use_causal_mask,
        dropout=layer._dropout_layer.rate,
    )
    if gate is not None:
        output = layers.Multiply(name="gated")([output, gate])
    output = _projected(layer._output_dense, output)
    return (output, scores) if return_attention_scores else output


def _dot_product(
    layer: layers.Attention,
    inputs: Any,
    mask: Any = None,
    training: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Any:
    """Attention with dot-product scores."""
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    query_mask, value_mask = (mask[0], mask[1]) if mask else (None, None)
    output, scores = _attend(
        query,
        key,
        value,
        equations=("btd,bsd->bts", "bts,bsd->btd"),
        mask=None if value_mask is None else ops.expand_dims(value_mask, axis=-2),
        causal=use_causal_mask,
        dropout=layer.dropout,
        trained=layer.use_scale,
    )
    if query_mask is not None:
        output = KeepWhere(name="kept")([output, ops.expand_dims(query_mask, axis=-1)])
    return (output, scores) if return_attention_scores else output


def _attention(b: Builder, node: Node) -> list[Value] | None:
    """A product, a softmax with the trained scale as its factor, a product."""
    layer = node.operation
    if layer.score_mode != "dot":
        return None
    weights = {"weights/scale": "scale"} if layer.use_scale else None
    return traced(_dot_product, weights)(b, node)


def _multi_head_attention(b: Builder, node: Node) -> list[Value] | None:
    """EinsumDense layers, a product with the mask on its result, a softmax, a product."""
    if len(getattr(node.operation, "_attention_axes", None) or (1,)) != 1:
        return None
    return traced(_multi_head)(b, node)


def _additive_scores(
    layer: layers.AdditiveAttention,
    inputs: Any,
    mask: Any = None,
    training: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Any:
    """AdditiveAttention: its scores are a trained sum of tanh(query + key)."""
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    pairs = ops.add(ops.expand_dims(query, axis=-2), ops.expand_dims(key, axis=-3))
    sizes = (query.shape[1], key.shape[1])
    scores = layers.EinsumDense("btsd,d->bts", sizes, name="scores")(ops.tanh(pairs))
    weights = ScaledSoftmax(name="weights")(scores)
    rate = layer.dropout
    dropped = layers.Dropout(rate, name="dropout")(weights) if rate else weights
    output = Product("bts,bsd->btd", name="attended")([dropped, value])
    return (output, weights) if return_attention_scores else output


def _additive_attention(b: Builder, node: Node) -> list[Value] | None:
    """A sum, tanh, an EinsumDense with the trained scale as its kernel, a softmax, a product."""
    layer = node.operation
    masks = keras.tree.flatten(node.kwargs.get("mask") or [])
    is_masked = node.kwargs.get("use_causal_mask") or any(m is not None for m in masks)
    if is_masked or not layer.use_scale or len(node.inputs[0].shape) != 3:
        return None
    return traced(_additive_scores, {"scores/kernel": "scale"})(b, node)


def _function(b: Builder, node: Node) -> Value | None:
    """A product with the mask on its result, a softmax, a product."""
    operation = node.operation
    names = ("query", "key", "value", "bias", "mask", "scale")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False))
    given.update(node.kwargs)
    query, key, value = given["query"], given["key"], given["value"]
    mask = given.get("mask")
    tensors = all(isinstance(v, Value) for v in (query, key, value))
    if not tensors or given.get("bias") is not None or query.shape[2] != key.shape[2]:
        return None
    if mask is not None and not isinstance(mask, Value):
        return None
    scale = given.get("scale") or getattr(operation, "scale", None) or query.shape[-1] ** -0.5
    causal = bool(given.get("is_causal", getattr(operation, "is_causal", False)))
    options: dict[str, Any] = {"margin": _MARGIN / float(scale), "causal": causal}
    equations = "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"
    masked = [] if mask is None else [mask]
    scores = b.call(
        lambda n: Product(equations[0], name=n, **options), "scores", query, key, *masked
    )
    weights = b.call(lambda n: ScaledSoftmax(float(scale), name=n), "weights", scores)
    return b.call(lambda n: Product(equations[1], name=n), "", weights, value)


for _cls in (layers.MultiHeadAttention, layers.GroupQueryAttention):
    register(_cls, spec=OperatorSpec(decompose=_multi_head_attention))
register(layers.Attention, spec=OperatorSpec(decompose=_attention))
register(
    layers.AdditiveAttention,
    spec=OperatorSpec(decompose=_additive_attention),
)
register(ops.dot_product_attention, spec=OperatorSpec(decompose=_function))
