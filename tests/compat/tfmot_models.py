"""Makes models with tfmot and writes them, their inputs and outputs, and their migrations.

A script: importing tfmot makes `tf.keras` the legacy Keras for the whole process.

    python -m tests.compat.tfmot_models FOLDER
"""

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
    x = layers.LeakyReLU(0.1, name="leaky")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(16, name="hidden")(layers.Dropout(0.0)(x))
    x = layers.ReLU(name="hidden_relu")(norm(name="hidden_norm")(x))
    scores = layers.Dense(5, name="scores")(x)
    return tf_keras.Model(image, [scores, layers.Dense(5, activation="softmax", name="classes")(x)])


def train(model, x, y, callbacks=()):
    model.compile(tf_keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


def quantized(x):
    model = quantization.quantize_model(cnn())
    y = np.eye(5, dtype="float32")[RNG.integers(0, 5, len(x))]
    return train(model, x, [4 * y, y])


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
    model = quantization.quantize_apply(model)
    return train(model, x, np.ones((len(x), 5), "float32"))


def pruned(x):
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
    step = tfmot.sparsity.keras.UpdatePruningStep()
    return train(model, x, np.ones((len(x), 5), "float32"), [step])


def pruned_dense(x):
    model = tf_keras.Sequential(
        [layers.InputLayer((12, 12, 3)), layers.Flatten(), layers.Dense(5, name="logits")]
    )
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, -1, 1)
    model = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    step = tfmot.sparsity.keras.UpdatePruningStep()
    return train(model, x, np.ones((len(x), 5), "float32"), [step])


def clustered(x, **options):
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
    return train(model, x, np.ones((len(x), 5), "float32"))


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


def main(folder):
    folder = pathlib.Path(folder)
    x = RNG.normal(size=(96, 12, 12, 3)).astype("float32")
    models = {
        "quantized": quantized(x),
        "annotated": annotated(x),
        "pruned": pruned(x),
        "pruned_dense": pruned_dense(x),
        "clustered": clustered(x),
        "clustered_sparse": clustered(x, cluster_per_channel=True, preserve_sparsity=True),
        "plain": plain(),
    }
    models["pruned_stripped"] = tfmot.sparsity.keras.strip_pruning(models["pruned"])
    models["clustered_stripped"] = tfmot.clustering.keras.strip_clustering(models["clustered"])
    found = {"x": x}
    for name, model in models.items():
        outputs = model.predict(x, verbose=0)
        for i, y in enumerate(outputs if isinstance(outputs, list) else [outputs]):
            found[f"{name}_{i}"] = y
        # An .h5 has no place for two masks of one layer.
        is_recurrent = name == "pruned"
        path = folder / (name if is_recurrent else f"{name}.h5")
        model.save(path, save_format="tf" if is_recurrent else "h5")
        data = x if name == "annotated" else None
        migrated = tfc.from_tfmot(model, calibration_data=data)
        outputs = migrated.predict(x, verbose=0)
        for i, y in enumerate(outputs if isinstance(outputs, list) else [outputs]):
            found[f"live_{name}_{i}"] = y
    np.savez(folder / "outputs.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
