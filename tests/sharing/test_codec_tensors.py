"""Arrays through the codec and back: exact to the bit, every byte booked, damage refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.sharing.codec.buffers import Reader, Writer
from tfcompress.sharing.codec.entropy import (
    CODERS,
    decode_symbols,
    encode_symbols,
    estimated_bits,
    fixed_bits,
    huffman_bits,
)
from tfcompress.sharing.codec.integers import (
    absolute_index,
    decode_integers,
    encode_integers,
    relative_index,
)
from tfcompress.sharing.codec.tensors import (
    METHODS,
    decode_tensor,
    encode_tensor,
    few_values,
    find_grid,
)

shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@st.composite
def kernels(draw):
    """Arrays of few values, of codes and scales, or of anything, with any share of zeros."""
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["codebook", "grid", "floats", "bits"]))
    if kind == "codebook":
        book = random.normal(size=draw(st.integers(1, 300))).astype(np.float32)
        array = random.choice(book, size=shape)
    elif kind == "grid":
        scale = random.uniform(1e-6, 10, shape[-1:]).astype(np.float32)
        array = random.integers(-127, 128, shape).astype(np.float32) * scale
    elif kind == "floats":
        array = random.normal(size=shape).astype(np.float32)
    else:
        # −0, infinities, NaN and denormals among them.
        array = random.integers(0, 2**32, shape, np.uint32).view(np.float32)
        special = np.array([-0.0, np.inf, np.nan, 1e-45], np.float32)
        array = np.where(random.random(shape) < 0.3, random.choice(special, shape), array)
    keep = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    array = np.where(random.random(shape) < keep, array, np.float32(0))
    return np.asarray(array, np.float32).reshape(shape)


@given(kernels(), st.sampled_from(CODERS))
@settings(max_examples=200, deadline=None)
def test_round_trip_to_the_bit(array, coder):
    written = encode_tensor(array, coder)
    assert sum(written.parts.values()) == len(written.data)
    reader = Reader(bytes(written.data))
    again = decode_tensor(reader, array.shape, array.dtype)
    reader.finish()
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()
    # Never much more than the plain bytes.
    assert len(written) <= array.nbytes + 2


def large_arrays():
    """Name → array that is coded by estimates, the method, and the most bits for each weight."""
    random = np.random.default_rng(0)
    floats = random.normal(0, 0.05, (60, 200)).astype(np.float32)
    pruned = np.where(np.abs(floats) < np.quantile(np.abs(floats), 0.8), 0, floats)
    book = np.sort(random.normal(size=16)).astype(np.float32)
    coded = random.choice(book, (60, 200))
    scales = np.abs(floats).max(0) / np.float32(127)
    grid = (np.rint(floats / scales) * scales + np.float32(0)).astype(np.float32)
    rows = pruned.copy()
    rows[::2] = 0
    return {
        "floats": (floats, "plain", 27.5),
        "half": (floats.astype(np.float16).astype(np.float32), "plain", 14.1),
        "pruned": (pruned, "sparse", 6.3),
        "pruned rows": (rows, "sparse", 3.2),
        "codebook": (coded, "codebook", 4.1),
        "pruned codebook": (np.where(pruned == 0, 0, coded), "codebook", 1.8),
        "grid": (grid, "codes and scales", 8.5),
        "pruned grid": (np.where(pruned == 0, 0, grid), "codes and scales", 3.0),
        "repeats": (np.tile(floats[:6], (10, 1)), None, 4.0),
        "zeros": (np.zeros((60, 200), np.float32), None, 0.1),
        "NaN": (np.where(floats > 0, np.float32(np.nan), np.float32(-0.0)), "codebook", 1.1),
        "bytes": (random.integers(0, 4, 12_000).astype(np.int64), "plain", 3.0),
    }


@pytest.mark.parametrize("name", large_arrays())
@pytest.mark.parametrize("coder", ["auto", "huffman"])
def test_large_arrays(name, coder):
    array, method, bits = large_arrays()[name]
    written = encode_tensor(array, coder)
    reader = Reader(bytes(written.data))
    again = decode_tensor(reader, array.shape, array.dtype)
    reader.finish()
    assert again.tobytes() == array.tobytes()
    assert sum(written.parts.values()) == len(written.data)
    if coder == "auto":
        assert method in (None, METHODS[written.data[0]])
        assert 8 * len(written) / array.size < bits


def test_few_values_are_those_that_sorting_finds():
    random = np.random.default_rng(0)
    for count, limit, found in ((300, 1000, True), (60_000, 65_536, True), (3000, 1000, False)):
        flat = random.integers(0, count, 400_000).astype(np.uint32) * 7919
        result = few_values(flat, limit)
        assert (result is not None) == found
        if result is not None:
            patterns, index = np.unique(flat, return_inverse=True)
            np.testing.assert_array_equal(result[0], patterns)
            np.testing.assert_array_equal(result[1], index)
    assert (
        few_values(random.normal(size=400_000).astype(np.float32).view(np.uint32), 65_536) is None
    )


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_the_bits_of_huffman_are_those_of_its_code(counts):
    symbols = np.repeat(np.arange(len(counts)), counts)
    coded = encode_symbols(symbols, "values", "huffman")
    ways = [huffman_bits(np.array(counts)), fixed_bits(symbols.size, len(counts))]
    if len(counts) > 1:
        # Whichever is shorter with its table; in whole bytes, after the length of the stream.
        assert min(abs(8 * coded.parts["values"] - bits) for bits in ways) <= 32


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64, np.float16, bool])
def test_other_types_stay_as_they_are(dtype):
    array = (np.arange(60).reshape(5, 12) % 3).astype(dtype)
    written = encode_tensor(array)
    again = decode_tensor(Reader(bytes(written.data)), array.shape, array.dtype)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@given(
    st.lists(st.integers(0, 40), max_size=300),
    st.sampled_from(CODERS),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_symbols_and_integer_arrays(symbols, coder, columns):
    symbols = np.array(symbols, np.int64)
    written = encode_symbols(symbols, "values", coder)
    reader = Reader(bytes(written.data))
    np.testing.assert_array_equal(decode_symbols(reader, symbols.size), symbols)
    reader.finish()
    array = symbols[: symbols.size // columns * columns].reshape(-1, columns) // 15
    reader = Reader(bytes(encode_integers(array, coder).data))
    np.testing.assert_array_equal(decode_integers(reader, array.shape), array)
    reader.finish()


@given(st.lists(st.integers(0, 5000), unique=True, max_size=50), st.integers(2, 12))
def test_relative_index_is_bounded(positions, bits):
    positions = np.sort(np.array(positions, np.int64))
    symbols = relative_index(positions, bits)
    assert symbols.max(initial=0) < 2**bits
    np.testing.assert_array_equal(absolute_index(symbols, bits), positions)


def test_the_coders_reach_what_theory_says():
    random = np.random.default_rng(0)
    probabilities = np.array([0.9, 0.04, 0.03, 0.02, 0.01])
    symbols = random.choice(5, 20000, p=probabilities)
    entropy = -np.sum(probabilities * np.log2(probabilities)) * symbols.size / 8
    sizes = {coder: len(encode_symbols(symbols, "values", coder)) for coder in CODERS}
    assert sizes["ans"] == pytest.approx(entropy, rel=0.02)
    assert sizes["ans"] == pytest.approx(estimated_bits(symbols) / 8, rel=0.01)
    # Huffman's shortest code has one bit; here the mean length of the best code is 1.16.
    lengths = np.array([1, 2, 3, 4, 4])
    counts = np.bincount(symbols)
    assert sizes["huffman"] == pytest.approx(np.sum(counts * lengths) / 8, abs=24)
    assert sizes["auto"] == sizes["ans"]


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("end", [0, 1, 2])
def test_streams_that_end_in_a_run_of_one_symbol(coder, end):
    for run in (1, 7, 31, 64, 500):
        symbols = np.array([0, 1, 2, 0, 1, 2] + [end] * run)
        reader = Reader(bytes(encode_symbols(symbols, "values", coder).data))
        np.testing.assert_array_equal(decode_symbols(reader, symbols.size), symbols)
        reader.finish()


def test_sparse_kernels_cost_what_their_positions_and_values_do():
    random = np.random.default_rng(1)
    book = random.normal(size=31).astype(np.float32)
    kernel = np.where(random.random((400, 300)) < 0.05, random.choice(book, (400, 300)), 0)
    kernel = kernel.astype(np.float32)
    written = encode_tensor(kernel)
    p = np.mean(kernel != 0)
    entropy = kernel.size * (-p * np.log2(p) - (1 - p) * np.log2(1 - p) + p * np.log2(31)) / 8
    assert METHODS[written.data[0]] == "codebook"
    assert entropy < len(written) < 1.06 * entropy
    # Rows that are empty and rows that are full cost next to nothing.
    kernel[:200] = 0
    kernel[200:] = book[0]
    assert len(encode_tensor(kernel)) < kernel.size / 200


def test_a_grid_is_found_for_any_scale():
    random = np.random.default_rng(2)
    for axes in ((), (1,), (0,)):
        shape = [n if axis in axes else 1 for axis, n in enumerate((40, 30))]
        scale = np.exp(random.normal(size=shape) * 5).astype(np.float32)
        codes = random.integers(-90, 91, (40, 30))
        array = codes.astype(np.float32) * scale
        found, scales = find_grid(array, axes)
        assert (found.astype(np.float32) * scales.reshape(shape)).tobytes() == array.tobytes()
        assert len(encode_tensor(array)) < array.size * 1.4
    assert find_grid(random.normal(size=(9, 9)).astype(np.float32), (1,)) is None


def flips(data, count, random):
    for position in random.choice(8 * len(data), count, replace=count > 8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        yield bytes(damaged)


def test_damage_never_gets_past_a_value_error():
    random = np.random.default_rng(3)
    book = random.normal(size=15).astype(np.float32)
    sparse = np.where(random.random((40, 30)) < 0.1, random.choice(book, (40, 30)), 0)
    arrays = [
        sparse.astype(np.float32),
        random.choice(book, (9, 30)),
        random.integers(-127, 128, (30, 9)).astype(np.float32) * np.float32(0.013),
        np.zeros((5, 5), np.float32),
        np.float32(random.normal(size=7)),
        np.where(np.arange(4000).reshape(-1, 4) % 997 == 0, np.float32(1.5), np.float32(0)),
        # One entry behind a long gap: with fewer bits to the index there would be none.
        np.where(np.arange(4000).reshape(-1, 4) == 996, np.float32(1.5), np.float32(0)),
    ]
    read = refused = 0
    for array in arrays:
        for coder in CODERS:
            data = bytes(encode_tensor(array, coder).data)
            cuts = [data[:i] for i in range(len(data))]
            for damaged in [*flips(data, 600, random), *cuts]:
                try:
                    reader = Reader(damaged)
                    again = decode_tensor(reader, array.shape, array.dtype)
                    reader.finish()
                except ValueError:
                    refused += 1
                else:
                    read += 1
                    assert again.shape == array.shape
                    assert again.dtype == array.dtype
    assert refused > 1000
    assert read + refused > 10_000


def test_numbers_that_no_writer_writes():
    with pytest.raises(ValueError, match="damaged"):
        Reader(b"\xff" * 20).varint(2**60)
    with pytest.raises(ValueError, match="truncated"):
        Reader(b"\x80").varint(100)
    with pytest.raises(ValueError, match="up to 5"):
        Reader(bytes(Writer().varint("x", 6).data)).varint(5)
    with pytest.raises(ValueError, match="more bytes"):
        Reader(b"x").finish()
