"""Every grid together with the other techniques, in one net and one file."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc

#: Grids that a pruned kernel may have, and those that it may not.
PRUNED = {
    "lsq": tfc.WeightScheme(4, quantizer=tfc.LSQ()),
    "ternary": tfc.WeightScheme(2, quantizer=tfc.TernaryWeights()),
    "trained_ternary": tfc.WeightScheme(2, quantizer=tfc.TrainedTernary()),
    "powers": tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights()),
    "codebook": tfc.WeightScheme(4, quantizer=tfc.CodebookWeights()),
    "levels": tfc.WeightScheme(quantizer=tfc.LevelWeights((-60, -7, 0, 3, 127))),
}
NOT_PRUNED = {
    "dorefa": tfc.WeightScheme(2, quantizer=tfc.DoReFaWeights()),
    "binary": tfc.WeightScheme(2, quantizer=tfc.BinaryWeights()),
    "apot": tfc.WeightScheme(4, quantizer=tfc.APoT()),
}
GRIDS = {**PRUNED, **NOT_PRUNED}


def float_model():
    """A branch of two convolutions for each grid; their sum gives the logits."""
    inputs, branches = keras.Input((6, 6, 4), name="image"), []
    for name in GRIDS:
        x = layers.Conv2D(16, 3, use_bias=False, name=f"{name}_first")(inputs)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(8, 3, name=name)(x)
        branches.append(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    x = layers.Concatenate()(branches)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def test_shrunk_pruned_quantized_and_distilled_in_one_fit(tmp_path, converter):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(0, 1, (64, 6, 6, 4)).astype(np.float32)
    labels = np.arange(64) % 3
    teacher = float_model()
    small = tfc.shrink(teacher, target_macs=0.6)
    assert tfc.count_macs(small) < 0.7 * tfc.count_macs(teacher)
    by_name = {name: tfc.Scheme(scheme) for name, scheme in GRIDS.items()}
    config = tfc.QuantizationConfig(by_name=by_name)
    student = tfc.quantize(small, config, calibration_data=images)
    distiller = tfc.Distiller(teacher, student, tfc.LogitsDistillation(2.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), loss)
    before = {n: student.get_layer(n).effective_weights()["kernel"].numpy() for n in GRIDS}
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5), layers=list(PRUNED))
    distiller.fit(images, labels, batch_size=16, epochs=2, verbose=0, callbacks=[pruning])
    for name in GRIDS:
        kernel = student.get_layer(name).effective_weights()["kernel"].numpy()
        assert not np.array_equal(kernel, before[name]), name
        assert (np.mean(kernel == 0) >= 0.5) == (name in PRUNED), name
    report = tfc.export_tflite(student, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors
    pruned = {row.name: row.pruned + row.rounded_to_zero for row in report.layers}
    sizes = {row.name: row.num_weights for row in report.layers}
    assert all(pruned[name] >= 0.5 * sizes[name] for name in PRUNED)
    # APoT has a level 0; its normalization is what moves pruned weights off it.
    assert pruned["dorefa"] == pruned["binary"] == 0
    found = next(iter(tfc.Runner(tmp_path / "m.tflite").predict(images).values()))
    np.testing.assert_allclose(found, student(images), atol=1e-5)
