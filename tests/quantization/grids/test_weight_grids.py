"""Weight quantizers beside NumPy: what they round to, and both gradients."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.quantization.fake_quant.variables import add_variables

SHAPE = (40, 6)


def grid(scheme):
    return tfc.KernelGrid(scheme, SHAPE, (1,), scheme.per_channel)


def state_of(scheme, kernel):
    quantizer = scheme.quantizer
    state = add_variables(keras.layers.Layer(), quantizer.variables(grid(scheme)))
    for name, value in quantizer.fit(kernel, grid(scheme)).items():
        state[name].assign(value)
    return state


def kernel(seed=0):
    values = np.random.default_rng(seed).normal(0, 0.2, SHAPE).astype(np.float32)
    values[:, 2] *= 5
    return values


def rounded(scheme, values, training=False):
    found = scheme.quantizer.quantize(
        tf.constant(values), state_of(scheme, values), grid(scheme), training
    )
    return tuple(np.asarray(part) for part in found)


def scale_of(scheme, state, values):
    return scheme.quantizer.quantize(values, state, grid(scheme), False)[1]


def gradients(scheme, values, upstream):
    """Gradients of Σ upstream · ŵ: to the kernel, and to each variable by name."""
    x, state = tf.Variable(values), state_of(scheme, values)
    trained = {name: variable.value for name, variable in state.items()}
    with tf.GradientTape() as tape:
        out, _ = scheme.quantizer.quantize(x.value(), state, grid(scheme), True)
        loss = tf.reduce_sum(out * upstream)
    found = tape.gradient(loss, [x, *trained.values()])
    return np.asarray(found[0]), dict(zip(trained, map(np.asarray, found[1:]), strict=True))


LSQ4 = tfc.WeightScheme(4, quantizer=tfc.LSQ())
SCHEMES = {
    "lsq": LSQ4,
    "lsq two bits": tfc.WeightScheme(2, narrow_range=False, quantizer=tfc.LSQ()),
    "lsq one scale": tfc.WeightScheme(4, per_channel=False, quantizer=tfc.LSQ()),
    "dorefa 2": tfc.WeightScheme(2, quantizer=tfc.DoReFaWeights()),
    "dorefa 4": tfc.WeightScheme(4, quantizer=tfc.DoReFaWeights()),
    "dorefa 7": tfc.WeightScheme(7, quantizer=tfc.DoReFaWeights(keeps_scale=False)),
    "ternary": tfc.WeightScheme(2, quantizer=tfc.TernaryWeights()),
    "trained ternary": tfc.WeightScheme(2, quantizer=tfc.TrainedTernary()),
    "binary": tfc.WeightScheme(2, quantizer=tfc.BinaryWeights()),
    "powers of two": tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights()),
    "logarithmic": tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights(logarithmic=True)),
    "apot 3": tfc.WeightScheme(3, quantizer=tfc.APoT()),
    "apot 4": tfc.WeightScheme(4, quantizer=tfc.APoT(normalize=False)),
    "apot 5": tfc.WeightScheme(5, quantizer=tfc.APoT()),
    "levels": tfc.WeightScheme(quantizer=tfc.LevelWeights((-100, -7, 0, 3, 127))),
    "codebook": tfc.WeightScheme(3, quantizer=tfc.CodebookWeights()),
}
#: The codes that each may give.
CODES = {
    "lsq": range(-7, 8),
    "lsq two bits": range(-2, 2),
    "lsq one scale": range(-7, 8),
    "dorefa 2": (-3, -1, 1, 3),
    "dorefa 4": range(-15, 16, 2),
    "dorefa 7": range(-127, 128, 2),
    "ternary": (-1, 0, 1),
    "trained ternary": range(-127, 128),
    "binary": (-1, 1),
    "powers of two": (-8, -4, -2, -1, 0, 1, 2, 4, 8),
    "logarithmic": [s * 2**n for s in (-1, 1) for n in range(7)] + [0],
    "apot 3": (-4, -2, -1, 0, 1, 2, 4),
    "apot 4": (-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10),
    "apot 5": [s * (a + b) for s in (-1, 1) for a in (0, 2, 8, 32) for b in (0, 1, 4, 16)],
    "levels": (-100, -7, 0, 3, 127),
    "codebook": range(-127, 128),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_kernel_becomes_whole_codes_times_a_positive_scale(name):
    scheme, values = SCHEMES[name], kernel()
    out, scale = rounded(scheme, values)
    assert scale.shape == grid(scheme).scale_shape
    assert (scale > 0).all()
    codes = out / scale
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert set(np.round(codes).astype(int).ravel()) <= set(CODES[name])
    np.testing.assert_array_equal(out, rounded(scheme, values, True)[0])
    bits = scheme.quantizer.num_bits(scheme)
    assert -(2 ** (bits - 1)) <= min(CODES[name])
    assert max(CODES[name]) < 2 ** (bits - 1)
    zeros = np.zeros_like(values)
    assert np.isfinite(rounded(scheme, zeros)[0]).all()
    zeros[:, 0] = values[:, 0]
    out = rounded(scheme, zeros)[0]
    assert np.isfinite(out).all()
    if scheme.quantizer.holds_zero:
        assert not out[:, 1:].any()
    else:
        assert (rounded(scheme, values)[0] != 0).any()


# Those whose scale depends on the kernel by its largest value or not at all: a kernel on the grid
# gives the same grid.
@pytest.mark.parametrize(
    "name", ["binary", "ternary", "powers of two", "logarithmic", "levels", "dorefa 2"]
)
def test_every_level_gives_itself(name):
    scheme, values = SCHEMES[name], kernel()
    levels = np.asarray(sorted(set(CODES[name])), np.float32)
    values = np.resize(levels, SHAPE).astype(np.float32)
    if name == "dorefa 2":
        # The tanh bends what lies between: only the ends are fixed points.
        values = np.where(values < 0, -3.0, 3.0).astype(np.float32)
    if name == "levels":
        values /= 127
    out, _ = rounded(scheme, values)
    np.testing.assert_allclose(out, values, rtol=1e-5)


@pytest.mark.parametrize("name", ["lsq", "powers of two", "apot 4", "levels"])
def test_a_weight_goes_to_the_nearest_level(name):
    scheme, values = SCHEMES[name], kernel()
    out, scale = rounded(scheme, values)
    if name == "apot 4":
        scale = scale.copy()
    levels = np.asarray(sorted(set(CODES[name])), np.float64) * scale[..., None].astype(np.float64)
    nearest = np.abs(values[..., None] - levels).min(-1)
    np.testing.assert_allclose(np.abs(values - out), nearest, atol=1e-6)


def test_logarithmic_rounds_the_logarithm():
    scheme, values = SCHEMES["logarithmic"], kernel()
    out, scale = rounded(scheme, values)
    top = np.round(np.log2(np.abs(values).max(0)))
    np.testing.assert_allclose(np.log2(scale.ravel()), top - 6)
    exponent = np.clip(np.round(np.log2(np.abs(values))), None, top)
    expected = np.where(np.abs(values) >= 0.5 * scale, np.sign(values) * 2.0**exponent, 0)
    # Between half of the smallest level and the smallest, everything is that.
    smallest = (np.abs(values) >= 0.5 * scale) & (np.abs(expected) < scale)
    expected = np.where(smallest, np.sign(values) * scale, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_dorefa_is_its_formula():
    values = kernel()
    scheme = tfc.WeightScheme(3, per_channel=False, quantizer=tfc.DoReFaWeights(False))
    out, scale = rounded(scheme, values)
    unit = np.tanh(values) / (2 * np.abs(np.tanh(values)).max()) + 0.5
    np.testing.assert_allclose(out, 2 * np.round(7 * unit) / 7 - 1, atol=1e-6)
    np.testing.assert_allclose(scale, 1 / 7, rtol=1e-6)


def test_apot_normalizes_and_keeps_the_size():
    values = kernel() + 0.05
    out, scale = rounded(SCHEMES["apot 3"], values)
    mean, deviation = values.mean(0), values.std(0)
    np.testing.assert_allclose(scale.ravel(), 3 * deviation / 4, rtol=1e-5)
    codes = np.clip((values - mean) / deviation / 0.75, -4, 4)
    levels = np.asarray(CODES["apot 3"])
    nearest = levels[np.abs(codes[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(out, nearest * scale, atol=1e-5)


def test_learned_step_gradients_are_those_of_the_paper():
    values = kernel()
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    to_kernel, to_state = gradients(LSQ4, values, upstream)
    step = 2 * np.abs(values).mean(0) / np.sqrt(7)
    scaled = values / step
    inside = np.abs(scaled) < 7
    np.testing.assert_allclose(to_kernel, upstream * inside, atol=1e-6)
    slope = np.where(inside, np.round(scaled) - scaled, 7 * np.sign(scaled))
    expected = (upstream * slope).sum(0) / np.sqrt(SHAPE[0] * 7)
    np.testing.assert_allclose(to_state["step"].ravel(), expected, rtol=1e-4, atol=1e-5)


def test_trained_ternary_gradients_are_those_of_the_paper():
    scheme, values = SCHEMES["trained ternary"], kernel()
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    to_kernel, to_state = gradients(scheme, values, upstream)
    least = 0.05 * np.abs(values).max(0)
    above, below = values > least, -values > least
    positive, negative = (np.abs(values * m).sum(0) / m.sum(0) for m in (above, below))
    slope = np.where(above, positive, np.where(below, negative, 1.0))
    np.testing.assert_allclose(to_kernel, upstream * slope, rtol=1e-2)
    sums = [(upstream * above).sum(0), -(upstream * below).sum(0)]
    for name, expected in zip(("positive", "negative"), sums, strict=True):
        np.testing.assert_allclose(to_state[name].ravel(), expected, rtol=1e-4, atol=1e-5)


def test_apot_gradient_of_the_ceiling():
    scheme, values = SCHEMES["apot 4"], kernel()
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    to_kernel, to_state = gradients(scheme, values, upstream)
    deviation = values.std(0)
    unit = values / deviation / 3.0
    inside = np.abs(unit) < 1
    np.testing.assert_allclose(to_kernel, upstream * inside, atol=1e-5)
    out, _ = rounded(scheme, values)
    slope = np.where(inside, out / deviation / 3.0 - unit, np.sign(unit)) * deviation
    np.testing.assert_allclose(to_state["alpha"].ravel(), (upstream * slope).sum(0), atol=1e-4)


def test_binary_and_ternary_gradients():
    values = kernel() * 4
    upstream = np.ones(SHAPE, np.float32)
    to_kernel, _ = gradients(SCHEMES["ternary"], values, upstream)
    np.testing.assert_array_equal(to_kernel, upstream)
    to_kernel, _ = gradients(SCHEMES["binary"], values, upstream)
    signs = np.sign(values)
    mean = np.abs(values).mean(0)
    expected = mean * (np.abs(values) <= 1) + signs * signs.sum(0) / SHAPE[0]
    np.testing.assert_allclose(to_kernel, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "options", "match"),
    [
        (tfc.LSQ(), {"rounding": "truncate"}, "rounding"),
        (tfc.LSQ(), {"observer": tfc.Percentile()}, "observer"),
        (tfc.TernaryWeights(), {}, "num_bits"),
        (tfc.DoReFaWeights(), {}, "num_bits"),
        (tfc.PowerOfTwoWeights(), {"num_bits": 5}, "num_bits"),
        (tfc.APoT(), {"num_bits": 4, "power_of_two": True}, "power_of_two"),
        (tfc.BinaryWeights(), {"num_bits": 2, "symmetric": False}, "symmetric"),
    ],
)
def test_options_that_it_cannot_follow_are_refused(quantizer, options, match):
    with pytest.raises(ValueError, match=match):
        tfc.WeightScheme(quantizer=quantizer, **options)


@pytest.mark.parametrize("codes", [(1,), (0, 0), (3, 1), (-128, 0), (0, 0.5), ()])
def test_levels_must_be_ascending_whole_numbers(codes):
    with pytest.raises(ValueError, match="ascending"):
        tfc.LevelWeights(codes)


def test_the_codebook_is_that_of_k_means_and_its_levels_are_trained():
    scheme, values = SCHEMES["codebook"], kernel()
    units = values / np.abs(values).max(0)
    state = state_of(scheme, values)
    levels = np.sort([*np.round(state["levels"].numpy() * 127), 0]) / 127
    out, scale = rounded(scheme, values)
    nearest = levels[np.abs(units[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(out / (scale * 127), nearest, atol=1e-5)
    # Lloyd's fixed point: a level is the mean of the weights that are nearest to it among its own.
    centres = state["levels"].numpy()
    members = np.abs(units.reshape(-1, 1) - [*centres, 0.0]).argmin(1)
    means = [units.ravel()[members == i].mean() for i in range(len(centres))]
    np.testing.assert_allclose(centres, means, atol=3e-2)
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    by_kernel, by_state = gradients(scheme, values, upstream)
    np.testing.assert_allclose(by_kernel, upstream, rtol=1e-6)
    wanted = []
    for level in np.round(state["levels"].numpy() * 127) / 127:
        uses = np.isclose(nearest, level, atol=1e-5)
        wanted.append(np.sum((upstream * scale * 127)[uses]))
    np.testing.assert_allclose(by_state["levels"], wanted, rtol=1e-4, atol=1e-4)
    assert not rounded(scheme, np.zeros_like(values))[0].any()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_graph_gives_the_codes_of_eager_execution_at_borders_too(name):
    """A graph may reorder constants, and a weight at a border would get another code."""
    scheme = SCHEMES[name]
    low = kernel()
    state = state_of(scheme, low)

    def codes(values):
        found, scale = scheme.quantizer.quantize(values, state, grid(scheme), False)
        return tf.round(found / scale)

    # Between neighbouring codes of the weights of each channel, by bisection; the largest stay.
    high = low + 0.03
    high[:4], low[:4] = (np.float32(sign * 1.5) for sign in (1, -1))
    wanted = np.asarray(codes(tf.constant(low)))
    for _ in range(40):
        middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
        is_same = np.asarray(codes(tf.constant(middle))) == wanted
        low, high = np.where(is_same, middle, low), np.where(is_same, high, middle)
        low[:4], high[:4] = -1.5, 1.5
    for values in map(tf.constant, (low, high, (low + high) / 2)):
        np.testing.assert_array_equal(tf.function(codes)(values), codes(values))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_graph_gives_the_scale_of_eager_execution(name):
    """A graph multiplies by the reciprocal of a constant: the last bit of a division differs."""
    scheme = SCHEMES[name]
    for seed in range(8):
        values = kernel(seed) * (1 + seed)
        scale = functools.partial(scale_of, scheme, state_of(scheme, values))
        given = tf.constant(values)
        np.testing.assert_array_equal(tf.function(scale)(given), scale(given))
