"""Nets of sequences of sound: recurrent ones, one that streams, and one of a sensor's features."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from benchmarks.tasks import data
from benchmarks.tasks.task import Outputs, Predict, Split, Task, accuracy, cross_entropy

_CLIP = (data.FRAMES, data.BANDS)
_UNITS = 48
# Frames that the streaming net's convolution has seen before the one that comes in.
_SEEN = 2


def _recurrent(layer: type[keras.Layer]) -> keras.Model:
    inputs = keras.Input(_CLIP, name="spectrum")
    return keras.Model(inputs, layers.Dense(10, name="logits")(layer(_UNITS)(inputs)))


def lstm(train: Split) -> keras.Model:
    """An LSTM over the frames, and logits of its last state."""
    return _recurrent(layers.LSTM)


def gru(train: Split) -> keras.Model:
    """Likewise a GRU."""
    return _recurrent(layers.GRU)


def streaming(train: Split | None = None) -> keras.Model:
    """One frame and the states → logits so far and the next states.

    A causal convolution over three frames, of which it keeps the last two, and a GRU cell.
    """
    frame = keras.Input((1, data.BANDS), name="frame")
    seen = keras.Input((_SEEN, data.BANDS), name="seen")
    state = keras.Input((_UNITS,), name="state")
    frames = layers.Concatenate(axis=1)([seen, frame])
    x = layers.Flatten()(layers.Conv1D(32, _SEEN + 1, activation="relu")(frames))
    output, (new_state,) = layers.GRUCell(_UNITS, name="cell")(x, [state])
    outputs = {
        "logits": layers.Dense(10, name="logits")(output),
        "next_seen": layers.Cropping1D((1, 0), name="next_seen")(frames),
        "next_state": new_state,
    }
    return keras.Model([frame, seen, state], outputs)


def whole_clips(step: keras.Model) -> keras.Model:
    """Calls a model of one frame on every frame, from states of zeros."""
    inputs = keras.Input(_CLIP, name="spectrum")
    seen = keras.ops.zeros_like(inputs[:, :_SEEN])
    state = keras.ops.zeros((1, _UNITS)) * inputs[:, 0, :1]
    outputs = {}
    for t in range(data.FRAMES):
        outputs = step([inputs[:, t : t + 1], seen, state])
        seen, state = outputs["next_seen"], outputs["next_state"]
    return keras.Model(inputs, outputs["logits"])


def streamed(predict: Predict, test: Split) -> Outputs:
    """The logits after the last frame."""
    return _stream(predict, test.inputs[0], [])


def _stream(predict: Predict, clips: np.ndarray, record: list) -> Outputs:
    states = [np.zeros((len(clips), *s), np.float32) for s in ((_SEEN, data.BANDS), (_UNITS,))]
    outputs: Outputs = {}
    for t in range(data.FRAMES):
        inputs = [clips[:, t : t + 1], *states]
        record.append(inputs)
        outputs = predict(inputs)
        states = [outputs["next_seen"], outputs["next_state"]]
    return {"logits": outputs["logits"]}


def step_inputs(step: keras.Model, split: Split, count: int) -> list[np.ndarray]:
    """The inputs that a model of one frame gets over whole clips, in random order."""

    def predict(inputs: Sequence[np.ndarray]) -> Outputs:
        return {k: np.asarray(v) for k, v in step(list(inputs), training=False).items()}

    record: list = []
    _stream(predict, split.inputs[0][: -(-count // data.FRAMES)], record)
    arrays = [np.concatenate(steps) for steps in zip(*record, strict=True)]
    order = np.random.default_rng(0).permutation(len(arrays[0]))[:count]
    return [array[order] for array in arrays]


def _sensor(inputs: list, train: Split) -> keras.Model:
    groups = []
    for tensor, array in zip(inputs, train.inputs, strict=True):
        normalization = layers.Normalization()
        normalization.adapt(array)
        groups.append(normalization(tensor))
    x = layers.Concatenate()(groups) if len(groups) > 1 else groups[0]
    for filters in (24, 32):
        x = layers.Conv1D(filters, 5, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(48, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.Dropout(0.3)(x)))


def sensor(train: Split) -> keras.Model:
    """Convolutions over time of normalized features; one input for each magnitude."""
    names = ("amplitudes", "shares", "frequencies")
    return _sensor([keras.Input((data.FRAMES, 2), name=name) for name in names], train)


def sensor_joined(train: Split) -> keras.Model:
    """The same with one input for all features."""
    return _sensor([keras.Input((data.FRAMES, 6), name="features")], train)


_COMMON = {"metric": "accuracy, %", "loss": cross_entropy, "score": accuracy}
_SPOKEN = {**_COMMON, "load": data.spoken_digits, "epochs": 14, "extra_epochs": 10}

TASKS = (
    Task(name="lstm", about="LSTM of 16 steps, spoken digits", build=lstm, **_SPOKEN),
    Task(name="gru", about="GRU of 16 steps, spoken digits", build=gru, **_SPOKEN),
    Task(
        name="streaming",
        about="causal convolution and GRU cell, states in and out, spoken digits",
        build=streaming,
        sequence=whole_clips,
        step_inputs=step_inputs,
        predict=streamed,
        **_SPOKEN,
    ),
    Task(
        name="sensor",
        about="1-D convolutions, features of unlike magnitude, an input for each magnitude",
        load=data.sensor,
        build=sensor,
        epochs=15,
        extra_epochs=4,
        **_COMMON,
    ),
    Task(
        name="sensor_one_input",
        about="the same with all features in one input",
        load=data.sensor_joined,
        build=sensor_joined,
        epochs=15,
        extra_epochs=4,
        **_COMMON,
    ),
)
