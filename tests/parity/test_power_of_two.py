"""Scales that are powers of two, between which sums and products often lie half way."""

import keras
from keras import layers, ops

import tfcompress as tfc
from tests.parity.test_layers import stem, three
from tests.parity.test_moves import signed

SCHEME = tfc.Scheme(tfc.WeightScheme(power_of_two=True), tfc.ActivationScheme(power_of_two=True))
# Name → body from an image of 8×8×1.
CASES = {
    "hard_silu": lambda x: layers.Activation("hard_silu")(signed(x)),
    "hard_sigmoid": lambda x: layers.Activation("hard_sigmoid")(signed(x)),
    "average": lambda x: layers.Average()(three(stem(x))),
    "add": lambda x: ops.add(signed(x), 1.7),
    "subtract": lambda x: ops.subtract(signed(x), 0.75),
    "add_then_relu": lambda x: ops.relu(signed(x) + 0.5),
    "multiply": lambda x: signed(x) * 0.3,
    "half": lambda x: signed(x) * 0.5,
    "negative_half": lambda x: signed(x) * -0.5,
    "divide": lambda x: signed(x) / 3.0,
    "average_pooling_same": lambda x: layers.AveragePooling2D(3, 1, "same")(signed(x)),
    "average_pooling": lambda x: layers.AveragePooling2D(2)(signed(x)),
    "sum": lambda x: ops.sum(signed(x), axis=1),
    "mean": lambda x: ops.mean(signed(x), axis=2),
    "global_average": lambda x: layers.GlobalAveragePooling2D()(signed(x)),
    "leaky_relu": lambda x: layers.LeakyReLU(0.25)(signed(x)),
    "prelu": lambda x: layers.PReLU(keras.initializers.Constant(0.25))(signed(x)),
}


def test_halves_end_where_the_runtime_puts_them(check_parity):
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.Model(inputs, {name: body(inputs) for name, body in CASES.items()})
    assert not tfc.plan(model).float_layers
    parities, report = check_parity(model, SCHEME)
    assert not report.float_tensors
    wrong = {n: p for n, p in parities.items() if p.equal < 0.999 or p.largest > 1}
    assert not wrong
    assert min(p.distinct for p in parities.values()) >= 16
