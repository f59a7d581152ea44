"""Makes models with tfmot and writes them, their inputs and outputs, and their migrations.

A script: importing tfmot makes `tf.keras` the legacy Keras for the whole process.

    python -m tests.compat.tfmot_models FOLDER
"""

import json
import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops
from tf_keras import layers

import tfcompress as tfc
from tfcompress.compat.tfmot import describe

quantization = tfmot.quantization.keras
# Its averages move by a thousandth a step from -6 … 6; here they are where training ends.
moving_average = quant_ops.MovingAvgQuantize
quant_ops.MovingAvgQuantize = lambda *a, **k: moving_average(*a, **{**k, "ema_decay": 0.5})
RNG = np.random.default_rng(0)


def norm(name):
    return layers.BatchNormalization(momentum=0.5, name=name)


def cnn():
    """Every pattern of tfmot's default 8-bit scheme."""
    image = tf_keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(norm(name="stem_norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    y = layers.Activation("relu", name="act")(norm(name="depth_norm")(y))
    y = layers.Conv2D(8, 1, use_bias=False, name="project")(y)
    y = norm(name="project_norm")(y)
    x = layers.Add(name="residual")([x, y])
    x = layers.MaxPooling2D(name="pool")(x)
    a = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(x)
    b = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.Concatenate(name="both")([a, b])
    x = layers.AveragePooling2D(name="means")(x)
    x = layers.UpSampling2D(2, name="larger")(x)
    x = layers.Conv2DTranspose(6, 2, 2, name="transposed")(x)
    # Ours is a sum of two rounded parts: not in the way of what is compared closely.
    largest = layers.GlobalMaxPooling2D(name="max")(layers.LeakyReLU(0.1, name="leaky")(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(16, name="hidden")(layers.Dropout(0.0)(x))
    x = layers.ReLU(name="hidden_relu")(norm(name="hidden_norm")(x))
    scores = layers.Dense(5, name="scores")(x)
    classes = layers.Dense(5, activation="softmax", name="classes")(x)
    return tf_keras.Model(image, [scores, classes, largest])


def train(model, x):
    """Two batches that move ranges and statistics, and the steps of an optimizer behind them.

    Without `fit`, whose traces take longer than all else here.
    """
    for batch in (x[:16], x[16:32]):
        model(batch, training=True)
    for weight in model.trainable_weights:
        weight.assign(weight * RNG.uniform(0.98, 1.02, weight.shape))
    return model


def quantized(x):
    return train(quantization.quantize_model(cnn()), x)


def annotated(x):
    """Two layers of three."""
    annotate = quantization.quantize_annotate_layer
    model = tf_keras.Sequential(
        [
            layers.InputLayer((12, 12, 3)),
            layers.Conv2D(4, 3, name="float_conv"),
            annotate(layers.Conv2D(4, 3, activation="relu", name="int8_conv")),
            annotate(layers.Flatten(name="flatten")),
            annotate(layers.Dense(5, name="int8_dense")),
        ]
    )
    return train(quantization.quantize_apply(model), x)


def pruned():
    options = {"pruning_schedule": tfmot.sparsity.keras.ConstantSparsity(0.5, 0, -1, 1)}
    model = tf_keras.Sequential(
        [
            layers.InputLayer((12, 12, 3)),
            layers.Reshape((12, 36)),
            layers.LSTM(16, name="lstm"),
            layers.Dense(24, activation="relu", name="dense"),
            layers.Dense(5, name="logits"),
        ]
    )
    model = tfmot.sparsity.keras.prune_low_magnitude(model, **options)
    for layer in model.layers:
        if hasattr(layer, "pruning_obj"):
            # What a training step and its callback do.
            layer.pruning_step.assign(1)
            layer.pruning_obj.conditional_mask_update()
            layer.pruning_obj.weight_mask_op()
    return model


def clustered(**options):
    model = tf_keras.Sequential(
        [
            layers.InputLayer((12, 12, 3)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(5, name="logits"),
        ]
    )
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.where(np.abs(kernel.numpy()) < 0.05, 0, kernel.numpy()))
    init = tfmot.clustering.keras.CentroidInitialization.LINEAR
    options = {"number_of_clusters": 8, "cluster_centroids_init": init, **options}
    model = tfmot.clustering.keras.cluster_weights(model, **options)
    for weight in model.trainable_weights:
        weight.assign(weight * 1.01)
    return model


def plain():
    """Layers whose options or weights Keras 3 has in another form."""
    image = tf_keras.Input((12, 12, 3), name="image")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(image)
    x = layers.Rescaling(0.5, 0.1)(x)
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="swish")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2)(x)
    x = layers.BatchNormalization(axis=[3])(x)
    x = layers.Conv2D(8, 3, groups=2, kernel_regularizer="l2")(x)
    x = layers.LeakyReLU(0.2)(x) + layers.PReLU(shared_axes=[1, 2])(x) * 0.5
    x = layers.Conv2DTranspose(4, 3)(x)
    x = layers.LayerNormalization()(layers.Reshape((36, 4))(x))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(x)
    inner = tf_keras.Sequential(
        [layers.InputLayer((36, 12)), layers.Conv1D(5, 3, padding="causal")]
    )
    x = layers.TimeDistributed(layers.Dense(4))(inner(x))
    shared = layers.Dense(4, name="shared")
    x = layers.Concatenate()([shared(x), shared(shared(x))])
    model = tf_keras.Model(image, [layers.GlobalMaxPooling1D()(x), layers.LSTM(3)(x)])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 1.5, v.shape) for v in layer.weights])
    return model


def outputs_of(model, x):
    found = model(x, training=False)
    return [np.asarray(y) for y in (found if isinstance(found, list) else [found])]


def main(folder):
    folder = pathlib.Path(folder)
    tf_keras.utils.set_random_seed(0)
    x = RNG.normal(size=(48, 12, 12, 3)).astype("float32")
    models = {
        "quantized": quantized(x),
        "annotated": annotated(x),
        "pruned": pruned(),
        "clustered": clustered(),
        "clustered_sparse": clustered(cluster_per_channel=True, preserve_sparsity=True),
        "plain": plain(),
    }
    models["pruned_stripped"] = tfmot.sparsity.keras.strip_pruning(models["pruned"])
    models["clustered_stripped"] = tfmot.clustering.keras.strip_clustering(models["clustered"])
    models["quantized"].save(folder / "quantized.h5")
    # An .h5 has no place for two masks of one layer.
    models["pruned"].save(folder / "pruned", save_format="tf")
    found = {"x": x}
    for name, model in models.items():
        found |= {f"{name}_{i}": y for i, y in enumerate(outputs_of(model, x))}
        describer = describe.Describer()
        source = describe.load(str(folder / "pruned")) if name == "pruned" else model
        content = {"model": describer.model(source)}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        np.savez(folder / f"{name}.npz", **describer.arrays)
    live = tfc.from_tfmot(models["quantized"])
    found["live"] = outputs_of(live, x)[0]
    np.savez(folder / "outputs.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
