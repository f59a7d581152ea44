"""Under `jit_compile=True` XLA compiles the train step of a compressed network once."""

from tests import fresh

CODE = """
import os, pathlib, sys

folder = pathlib.Path(sys.argv[1])
os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"

import keras
import numpy as np
from keras import layers
import tfcompress as tfc

image = keras.Input((8, 8, 3))
x = layers.Conv2D(8, 3, use_bias=False)(image)
x = layers.ReLU()(layers.BatchNormalization()(x))
model = keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
x, y = np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 3)).astype("float32"), np.arange(64) % 10
model = tfc.cluster(tfc.quantize(model, calibration_data=x), 8)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("sgd", loss, jit_compile=True)
compiled = []
count = lambda *_, **__: compiled.append(
    len({f.name.split(".")[0] for f in folder.iterdir() if "one_step" in f.name})
)
pruning = tfc.callbacks.Pruning(tfc.PolynomialDecay(0.0, 0.5, 0, 4, frequency=1), verbose=0)
model.fit(x, y, batch_size=8, verbose=0, callbacks=[
    pruning, tfc.callbacks.Clustering(frequency=2, end_step=5),
    keras.callbacks.LambdaCallback(on_train_batch_end=count),
])
print(compiled)
"""


def test_a_step_is_compiled_once(tmp_path):
    # In a process of its own: XLA reads its options once.
    assert fresh.run(CODE, tmp_path).split("\n")[-2] == str([1] * 8)
