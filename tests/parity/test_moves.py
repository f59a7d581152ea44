"""Operators that move, choose, clip or reduce values: the file gives what the model predicts."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.parity.test_layers import sequence, stem

_MASK = np.arange(64).reshape(8, 8, 1) % 3 > 0
_OTHER = np.random.default_rng(0).uniform(-2, 2, (8, 8, 1)).astype("float32")


def signed(x):
    """An image of values on both sides of zero."""
    return stem(x, 8, None)


def volume(x):
    """The image as a volume of 4 slices of 8×4 pixels, 4 channels."""
    return layers.Reshape((4, 8, 4, 4))(signed(x))


def two(x):
    y = signed(x)
    return y, layers.Conv2D(8, 1)(y)


# Name → model body from an input of 8×8×1.
CASES = {
    "sum_channels": lambda x: ops.sum(signed(x), axis=-1),
    "sum_positions": lambda x: ops.sum(signed(x), axis=(1, 2)),
    "sum_rows": lambda x: ops.sum(signed(x), axis=1, keepdims=True),
    "sum_all": lambda x: ops.sum(signed(x), axis=(1, 2, 3)),
    "sum_sequence": lambda x: ops.sum(sequence(x), axis=1),
    "mean_channels": lambda x: ops.mean(signed(x), axis=-1, keepdims=True),
    "mean_rows": lambda x: ops.mean(signed(x), axis=1),
    "mean_all": lambda x: ops.mean(signed(x), axis=(1, 2, 3)),
    "mean_sequence": lambda x: ops.mean(sequence(x), axis=-1),
    "max_channels": lambda x: ops.max(signed(x), axis=-1),
    "max_positions": lambda x: ops.amax(signed(x), axis=(1, 2)),
    "min_rows": lambda x: ops.min(signed(x), axis=1, keepdims=True),
    "min_all": lambda x: ops.amin(signed(x), axis=(1, 2, 3)),
    "clip": lambda x: ops.clip(signed(x), -0.3, 0.7),
    "clip_one": lambda x: ops.clip(signed(x), -1, 1),
    "clip_positive": lambda x: ops.clip(signed(x), 0, 0.8),
    "clip_relu6": lambda x: ops.clip(signed(x), 0, 6),
    "clip_above": lambda x: ops.clip(signed(x), 0.25, 1.5),
    "clip_of_codes": lambda x: ops.clip(layers.MaxPooling2D(2)(signed(x)), -0.2, 0.5),
    "maximum_number": lambda x: ops.maximum(signed(x), 0.1),
    "minimum_number": lambda x: ops.minimum(0.4, signed(x)),
    "pad_zero": lambda x: ops.pad(signed(x), ((0, 0), (1, 2), (0, 1), (0, 0))),
    "pad_number": lambda x: ops.pad(
        signed(x), ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=0.6
    ),
    "pad_reflect": lambda x: ops.pad(signed(x), ((0, 0), (2, 1), (0, 3), (0, 0)), mode="reflect"),
    "pad_symmetric": lambda x: ops.pad(
        signed(x), ((0, 0), (2, 1), (0, 3), (0, 0)), mode="symmetric"
    ),
    "roll": lambda x: ops.roll(signed(x), 3, axis=2),
    "roll_two": lambda x: ops.roll(signed(x), (1, -2), axis=(1, 2)),
    "flip": lambda x: ops.flip(signed(x), axis=1),
    "flip_channels": lambda x: ops.flip(signed(x), axis=(2, -1)),
    "rot90": lambda x: ops.rot90(signed(x), axes=(1, 2)),
    "stack": lambda x: ops.stack(two(x), axis=2),
    "unstack": lambda x: ops.unstack(signed(x), axis=1)[3],
    "tile": lambda x: ops.tile(signed(x), (1, 2, 1, 3)),
    "repeat": lambda x: ops.repeat(signed(x), 3, axis=2),
    "take": lambda x: ops.take(signed(x), np.array([5, 0, 2, 2]), axis=1),
    "take_negative": lambda x: ops.take(signed(x), [-1, 3], axis=-1),
    "swapaxes": lambda x: ops.swapaxes(signed(x), 1, 3),
    "moveaxis": lambda x: ops.moveaxis(signed(x), -1, 1),
    "split": lambda x: ops.split(signed(x), 2, axis=-1)[1],
    "transpose": lambda x: ops.transpose(signed(x), (0, 2, 1, 3)),
    "slice": lambda x: ops.expand_dims(ops.squeeze(signed(x)[:, 2:3], 1), 2),
    "max_pool": lambda x: ops.max_pool(signed(x), 2),
    "where_number": lambda x: ops.where(_MASK, signed(x), 0.5),
    "where_array": lambda x: ops.where(_MASK, _OTHER, signed(x)),
    "where_two": lambda x: ops.where(_MASK, *two(x)),
    "hstack": lambda x: ops.hstack(two(x)),
    "append": lambda x: ops.append(*two(x), axis=2),
    "divide": lambda x: signed(x) / 3.0,
    "resizing": lambda x: layers.Resizing(13, 5)(signed(x)),
    "resizing_double": lambda x: layers.Resizing(16, 16)(signed(x)),
    "resizing_half": lambda x: layers.Resizing(4, 3)(signed(x)),
    "resizing_nearest": lambda x: layers.Resizing(11, 6, "nearest")(signed(x)),
    "image_resize": lambda x: ops.image.resize(signed(x), (12, 9)),
    "image_resize_nearest": lambda x: ops.image.resize(signed(x), (5, 20), "nearest"),
    "resizing_of_the_input": lambda x: signed(layers.Resizing(11, 11)(x)),
    "depth_to_space": lambda x: ops.nn.depth_to_space(signed(x), 2),
    "space_to_depth": lambda x: ops.nn.space_to_depth(signed(x), 2),
    "adaptive_average": lambda x: layers.AdaptiveAveragePooling2D((4, 2))(signed(x)),
    "adaptive_average_uneven": lambda x: layers.AdaptiveAveragePooling2D((3, 5))(signed(x)),
    "adaptive_average1d": lambda x: layers.AdaptiveAveragePooling1D(3)(sequence(x)),
    "adaptive_average_pool": lambda x: ops.nn.adaptive_average_pool(
        signed(x), (8, 3), data_format="channels_last"
    ),
    "adaptive_max": lambda x: layers.AdaptiveMaxPooling2D((3, 2))(signed(x)),
    "adaptive_max1d": lambda x: layers.AdaptiveMaxPooling1D(5)(sequence(x)),
    "average_pool": lambda x: ops.average_pool(signed(x), 2),
    "average_pool_same": lambda x: ops.average_pool(signed(x), 3, 1, "same"),
    "max_pooling3d": lambda x: layers.MaxPooling3D(2)(volume(x)),
    "max_pooling3d_same": lambda x: layers.MaxPooling3D((3, 2, 3), (1, 2, 2), "same")(volume(x)),
    "average_pooling3d": lambda x: layers.AveragePooling3D(2)(volume(x)),
    "average_pooling3d_same": lambda x: layers.AveragePooling3D(3, 2, "same")(volume(x)),
    "global_average3d": lambda x: layers.GlobalAveragePooling3D()(volume(x)),
    "global_max3d": lambda x: layers.GlobalMaxPooling3D()(volume(x)),
    "zero_padding3d": lambda x: layers.ZeroPadding3D(1)(volume(x)),
    "cropping3d": lambda x: layers.Cropping3D(1)(volume(x)),
    "upsampling3d": lambda x: layers.UpSampling3D(2)(volume(x)),
    "conv3d": lambda x: layers.Conv3D(6, 3)(volume(x)),
    "conv3d_same": lambda x: layers.Conv3D(6, (2, 3, 3), (2, 1, 2), "same", activation="relu")(
        volume(x)
    ),
    "conv3d_batch_norm": lambda x: layers.ReLU()(
        layers.BatchNormalization()(layers.Conv3D(6, 2, dilation_rate=2, use_bias=False)(volume(x)))
    ),
    "conv1d_transpose": lambda x: layers.Conv1DTranspose(8, 3, 2)(sequence(x)),
    "conv1d_transpose_same": lambda x: layers.Conv1DTranspose(8, 4, 2, "same", activation="relu")(
        sequence(x)
    ),
    "conv1d_transpose_batch_norm": lambda x: layers.ReLU()(
        layers.BatchNormalization()(layers.Conv1DTranspose(8, 3, 1, use_bias=False)(sequence(x)))
    ),
    "argmax": lambda x: ops.argmax(signed(x), axis=-1),
    "argmin": lambda x: ops.argmin(signed(x), axis=1),
    "top_k": lambda x: ops.top_k(layers.Flatten()(signed(x)), 5)[0],
    "top_k_positions": lambda x: ops.top_k(layers.Flatten()(signed(x)), 5)[1],
}
_GROUPS = [list(CASES)[i : i + 40] for i in range(0, len(CASES), 40)]


@pytest.mark.parametrize("names", _GROUPS, ids=lambda names: f"{names[0]}..{names[-1]}")
def test_codes_of_the_file_are_the_outputs_of_the_model(names, check_parity):
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.Model(inputs, {name: CASES[name](inputs) for name in names})
    parities, report = check_parity(model)
    assert not report.float_tensors
    wrong = {n: p for n, p in parities.items() if p.equal < 0.99 or p.largest > 1}
    assert not wrong
    few = {n: p for n, p in parities.items() if p.distinct < (2 if "arg" in n else 16)}
    assert not few
