"""Translated TensorFlow functions, on symbolic tensors, give what TensorFlow gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.model import tf_translations
from tfcompress.model.tf_functions import UnknownFunction, translated

_RNG = np.random.default_rng(0)
X, Y = (_RNG.normal(size=(2, 4, 4, 6)).astype("float32") for _ in range(2))
POSITIVE = np.abs(X) + 0.1
TRUE = X > 0
INTEGERS = np.array([[0, 2], [1, 3]], "int32")
KERNEL = tf.constant(_RNG.normal(size=(3, 3, 6, 5)).astype("float32"))
DEPTHWISE = tf.constant(_RNG.normal(size=(3, 3, 6, 1)).astype("float32"))
MATRIX = tf.constant(_RNG.normal(size=(6, 3)).astype("float32"))
PADDED = [[0, 0], [1, 2], [0, 1], [0, 0]]

#: Function → calls: positional and keyword arguments. NumPy arrays become inputs of a model.
CALLS: dict[str, list[tuple[tuple, dict]]] = {}


def _add(names: str, *args, **kwargs) -> None:
    for name in names.split():
        CALLS.setdefault(name, []).append((args, kwargs))


for _name in tf_translations.UNARY:
    _is_partial = _name in ("math.log", "math.log1p", "math.sqrt", "math.rsqrt")
    _add(_name, TRUE if _name == "logical_not" else POSITIVE if _is_partial else X)
_add("math.round", np.array([0.5, 1.5, 2.5, -0.5], "float32"))
for _name in tf_translations.BINARY:
    if "logical" in _name:
        _add(_name, TRUE, Y > 0)
        continue
    _add(_name, POSITIVE if _name == "math.pow" else X, Y)
    _add(_name, POSITIVE, 2.0)
_add("math.pow math.subtract math.equal math.add", INTEGERS, 2)
for _name in tf_translations.REDUCTIONS:
    _of = TRUE if _name in ("math.reduce_all", "math.reduce_any") else X
    _add(_name, _of)
    _add(_name, _of, axis=1)
    _add(_name, _of, [1, 2], True)
    _add(_name, _of, axis=-1, keepdims=True)
_add("math.reduce_sum math.reduce_max math.reduce_prod", INTEGERS, axis=1)
for _options in ({}, {"axis": 1}, {"axis": [1, 2], "keepdims": True}):
    _add("math.reduce_mean", X, **_options)
_add("add_n math.add_n", [X, Y, X])
for _options in ({}, {"exclusive": True}, {"reverse": True}, {"exclusive": True, "reverse": True}):
    _add("math.cumsum", X, axis=1, **_options)
_add("math.cumsum", X)
_add("math.argmin math.argmax", X)
_add("math.argmin math.argmax", X, -1)
_add("math.argmin math.argmax", X, axis=1, output_type=tf.int32)
for _size in ((8, 8), (3, 5), (2, 2)):
    _add("image.resize", X, _size)
    _add("image.resize", X, _size, method="nearest")
_add("nn.depth_to_space", np.concatenate([X, Y], -1), 2)
_add("nn.space_to_depth", X, 2)
_add("nn.moments", X, [1, 2])
_add("nn.moments", X, axes=[-1], keepdims=True)
_add("norm", X)
_add("norm", X, axis=-1, keepdims=True)
_add("one_hot", INTEGERS, 4)
_add("one_hot", INTEGERS, 4, on_value=1.0, off_value=0.0)
_add("one_hot", INTEGERS, 4, axis=1, dtype=tf.int32)
_add("repeat", X, 2)
_add("repeat", X, repeats=3, axis=-1)
_add("roll", X, 1, axis=1)
_add("roll", X, [1, -2], axis=[1, 2])
_add("slice", X, [0, 1, 0, 2], [2, 2, -1, 3])
_add("sort", X)
_add("sort", X, axis=1, direction="DESCENDING")
_add("broadcast_to", X[:1], [2, 4, 4, 6])
_add("cast", X, tf.int32)
_add("cast", TRUE, "float32")
_add("clip_by_value", X, -0.5, clip_value_max=0.5)
_add("concat", [X, Y], axis=-1)
_add("concat", [X, Y], 1)
_add("convert_to_tensor", X)
_add("convert_to_tensor", X, dtype=tf.float32)
_add("einsum", "bhwc,cd->bhwd", X, MATRIX)
_add("expand_dims", X, axis=-1)
_add("expand_dims", X, 1)
_add("gather", X, [1, 0])
_add("gather", X, INTEGERS, axis=-1, batch_dims=0)
_add("linalg.matmul", X, Y, transpose_a=True)
_add("linalg.matmul", X, Y, transpose_b=True)
_add("linalg.matmul", X, MATRIX)
_add("math.l2_normalize", X)
_add("math.l2_normalize", X * 1e-5, [1, 2], epsilon=1e-3)
_add("nn.bias_add", X, tf.range(6.0))
for _padding in ("SAME", "VALID"):
    for _strides in (1, [1, 2, 2, 1], [2, 1]):
        _add("nn.conv2d", X, KERNEL, _strides, _padding)
    _add("nn.depthwise_conv2d", X, DEPTHWISE, [1, 2, 2, 1], _padding)
    _add("nn.max_pool2d nn.avg_pool2d nn.avg_pool", X, 3, 2, _padding)
    _add("nn.max_pool2d nn.avg_pool2d nn.avg_pool", X, [1, 2, 3, 1], [1, 1, 1, 1], _padding)
_add("nn.conv2d", X, KERNEL, strides=1, padding="SAME", dilations=[1, 2, 2, 1])
_add("nn.depthwise_conv2d", X, DEPTHWISE, [1, 1, 1, 1], padding="SAME", dilations=[2, 2])
_add("nn.gelu", X)
_add("nn.gelu", X, approximate=True)
_add("nn.leaky_relu", X)
_add("nn.leaky_relu", X, 0.1)
_add("nn.softmax nn.log_softmax", X)
_add("nn.softmax nn.log_softmax", X, axis=1)
_add("nn.softmax nn.log_softmax", X, axis=None)
_add("nn.silu", X)
_add("pad", X, PADDED)
_add("pad", X, PADDED, constant_values=-1.0)
_add("pad", X, PADDED, "REFLECT")
_add("pad", X, PADDED, mode="SYMMETRIC")
_add("reshape", X, [2, -1])
_add("reshape", X, shape=(-1, 6))
_add("reverse", X, [1])
_add("reverse", X, axis=[1, -1])
_add("shape", X)
_add("split", X, 2, axis=-1)
_add("split", X, num_or_size_splits=2)
for _sizes in ([2, 4], [2, -1], [-1, 2], [1, -1, 2]):
    _add("split", X, _sizes, axis=-1)
_add("split", X, [2, 1, 3], axis=-1, num=3)
_add("squeeze", X[:1, :1])
_add("squeeze", X[:1, :1], axis=[1])
_add("stack", [X, Y])
_add("stack", [X, Y], axis=-1)
_add("tensordot", X, MATRIX, 1)
_add("tensordot", X, Y, axes=[[1, 2], [1, 2]])
_add("tile", X, [1, 2, 1, 3])
_add("transpose", X)
_add("transpose", X, perm=[0, 3, 1, 2])
_add("unstack", X)
_add("unstack", X, axis=1)
_add("where", TRUE, X, Y)
_add("where", TRUE, X, 0.0)

#: Calls that another function of Keras would answer with other values: refused.
REFUSED = [
    ("gather", (X, [3, 0]), {"batch_dims": 1}),
    ("math.reduce_mean", (INTEGERS,), {}),
    ("nn.bias_add", (X, tf.range(4.0)), {"data_format": "NCHW"}),
    ("nn.conv2d", (X, KERNEL, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]), {}),
    ("nn.silu", (X, 0.5), {}),
    ("where", (TRUE,), {}),
]


def _symbolic(function, args, kwargs):
    """The function on symbolic tensors, and the model of what it gives."""
    arrays = [v for v in tf.nest.flatten((args, kwargs)) if isinstance(v, np.ndarray)]
    feed = [keras.Input(batch_shape=a.shape, dtype=a.dtype.name) for a in arrays]
    left = iter(feed)
    args, kwargs = tf.nest.map_structure(
        lambda v: next(left) if isinstance(v, np.ndarray) else v, (args, kwargs)
    )
    with translated():
        found = function(*args, **kwargs)
    return feed, arrays, found


@pytest.mark.parametrize("name", [n for table in tf_translations.TABLES for n in table])
def test_a_translation_gives_what_tensorflow_gives(name):
    function = tf_translations.public(name)
    assert CALLS.get(name), f"no call of tf.{name}"
    for args, kwargs in CALLS[name]:
        expected = tf.nest.flatten(function(*args, **kwargs))
        feed, arrays, found = _symbolic(function, args, kwargs)
        if name == "shape":
            assert found == X.shape
            continue
        found = tf.nest.flatten(keras.Model(feed, tf.nest.flatten(found))(arrays))
        assert len(found) == len(expected), (name, kwargs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=f"{name} {kwargs}")


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), REFUSED, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(REFUSED)]
)
def test_arguments_without_a_translation_are_refused(name, args, kwargs):
    with pytest.raises(UnknownFunction, match="arguments that have no translation"):
        _symbolic(tf_translations.public(name), args, kwargs)
