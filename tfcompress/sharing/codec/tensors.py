"""Coding of weight arrays, exact to the bit: a codebook, codes and scales, or plain floats."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from tfcompress.sharing.codec.buffers import Reader, Writer, smallest
from tfcompress.sharing.codec.entropy import (
    EXHAUSTIVE,
    decode_symbols,
    encode_symbols,
    estimated_bits,
)
from tfcompress.sharing.codec.integers import decode_integers, encode_integers

_PLAIN, _CODEBOOK, _GRID, _SPARSE = range(4)
_SINGLE, _HALF, _DEFLATED, _PLANES = range(4)
#: What the methods are called in reports.
METHODS = ("plain", "codebook", "codes and scales", "sparse")

# More distinct values than this are not a codebook.
_MAX_CODEBOOK = 2**16
_LARGEST_CODE = 127
# A large array with fewer zeros than this is written with them.
_MIN_ZEROS = 0.01
# Values of a large array that are looked at first: many values differ, or few.
_SAMPLE = 2**16
# Bytes of a sample that tells whether an array repeats itself.
_PROBE = 2**15


def encode_tensor(array: np.ndarray, coder: str = "auto") -> Writer:
    """Codes one array, the shortest way; shape and dtype are not stored.

    Of a large array the way is taken whose size is estimated to be the shortest.

    Args:
        array: Any shape and dtype.
        coder: One of `entropy.CODERS`.
    """
    array = np.asarray(array)
    if array.dtype != np.float32 or array.size <= 1:
        return _head(_PLAIN).extend(encode_plain(array, "floats"))
    coded = list(_grid(array)) if array.ndim > 1 else []
    is_large = array.size > EXHAUSTIVE
    # Codes take 8 bits at most, and a long table more than their scales.
    coded += _codebook(array, 2**10 if coded and is_large else _MAX_CODEBOOK)
    if is_large:
        return _encode_estimated(array, coded, coder)
    candidates = [_head(_PLAIN).extend(encode_plain(array, "floats")), _sparse(array, coder)]
    candidates += [head.extend(encode_integers(symbols, coder)) for head, symbols in coded]
    return smallest(candidates)


def _encode_estimated(
    array: np.ndarray, coded: list[tuple[Writer, np.ndarray]], coder: str
) -> Writer:
    """The way that is estimated to be the shortest, of a large array."""
    estimates = [8 * len(head) + estimated_bits(s.ravel(), coder) for head, s in coded]
    best = int(np.argmin(estimates)) if estimates else None
    kept = np.ascontiguousarray(array).view(np.uint32) != 0
    plain, sparse = 0.0, np.inf
    # A short table cannot be beaten by floats.
    if best is None or 8 * len(coded[best][0]) > array.size or _is_half(array):
        plain = _plain_bits(array.ravel())
        if np.count_nonzero(kept) < array.size * (1 - _MIN_ZEROS):
            index = estimated_bits(kept.ravel().astype(np.int64), coder)
            sparse = index + _plain_bits(array[kept])
        if best is None or min(plain, sparse) < estimates[best]:
            if sparse < plain:
                return _sparse(array, coder)
            return _head(_PLAIN).extend(encode_plain(array, "floats"))
    head, symbols = coded[best]
    return head.extend(encode_integers(symbols, coder))


def decode_tensor(reader: Reader, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Reads an array of `shape` and `dtype`; raises `ValueError` on what cannot be one."""
    dtype = np.dtype(dtype)
    method = reader.take(1)[0]
    if method == _PLAIN:
        return decode_plain(reader, int(np.prod(shape)), dtype).reshape(shape)
    read = {_CODEBOOK: _read_codebook, _GRID: _read_grid, _SPARSE: _read_sparse}.get(method)
    if read is None or dtype != np.float32:
        raise ValueError(
            f"Expected a way of coding {dtype} weights. Received: {method}. The file is damaged."
        )
    return read(reader, shape)


def _head(method: int) -> Writer:
    return Writer().add("framing", bytes([method]))


# --- plain arrays ---------------------------------------------------------------------------------


def encode_plain(array: np.ndarray, part: str) -> Writer:
    """Values as they are, as half precision where that is exact, or coded by byte planes.

    The planes of a small array, and of one that repeats itself, are deflated; of others each is
    entropy coded, or left as it is.
    """
    flat = array.ravel()
    flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    candidates = [Writer().add(part, bytes([_SINGLE]) + flat.tobytes())]
    if array.dtype == np.float32 and _is_half(array):
        half = flat.astype("<f2")
        candidates.append(Writer().add(part, bytes([_HALF]) + half.tobytes()))
    planes = np.frombuffer(flat.tobytes(), np.uint8).reshape(-1, flat.dtype.itemsize).T
    if flat.size <= EXHAUSTIVE:
        candidates.append(_deflated(planes, part, 9))
    elif _repeats(planes)[0]:
        candidates.append(_deflated(planes, part, 6))
    else:
        candidates.append(_planes(planes, part))
    return smallest(candidates)


def _repeats(planes: np.ndarray) -> tuple[bool, float]:
    """Whether a sample deflates better than its bytes are coded apart, and bits for each byte."""
    sample = np.ascontiguousarray(planes[:, : _PROBE // len(planes)])
    apart = sum(estimated_bits(plane.astype(np.int64)) for plane in sample)
    deflated = 8.0 * len(zlib.compress(sample.tobytes(), 1))
    return deflated < 0.9 * apart, min(apart, deflated) / max(sample.size, 1)


def _plain_bits(flat: np.ndarray) -> float:
    """What `encode_plain` will take."""
    planes = np.frombuffer(flat.tobytes(), np.uint8).reshape(-1, flat.itemsize).T
    bits = 8.0 * flat.size * flat.itemsize
    if flat.size:
        repeats, each = _repeats(planes)
        if repeats:
            bits = each * planes.size
        else:
            bits = float(sum(estimated_bits(plane.astype(np.int64)) for plane in planes))
    return min(bits, 16.0 * flat.size) if _is_half(flat) else bits


def _is_half(array: np.ndarray) -> bool:
    """Whether half precision holds every value to the bit."""
    with np.errstate(over="ignore"):
        return array.astype("<f2").astype("<f4").tobytes() == array.astype("<f4").tobytes()


def _deflated(planes: np.ndarray, part: str, level: int) -> Writer:
    deflated = zlib.compress(planes.tobytes(), level)
    writer = Writer().add(part, bytes([_DEFLATED])).varint(part, len(deflated))
    return writer.add(part, deflated)


def _planes(planes: np.ndarray, part: str) -> Writer:
    writer = Writer().add(part, bytes([_PLANES]))
    for plane in planes:
        symbols = plane.astype(np.int64)
        is_coded = estimated_bits(symbols) < 0.98 * 8 * symbols.size
        writer.add(part, bytes([is_coded]))
        if is_coded:
            writer.extend(encode_symbols(symbols, part))
        else:
            writer.add(part, plane.tobytes())
    return writer


def decode_plain(reader: Reader, count: int, dtype: np.dtype) -> np.ndarray:
    """Reads `count` numbers; raises `ValueError` on what cannot have been written."""
    dtype = np.dtype(dtype)
    form = reader.take(1)[0]
    if form == _SINGLE:
        data = reader.take(count * dtype.itemsize)
    elif form == _HALF and dtype == np.float32:
        return np.frombuffer(reader.take(2 * count), "<f2").astype(np.float32)
    elif form == _DEFLATED:
        planes = inflate(reader.take(reader.varint(reader.left)), count * dtype.itemsize)
        if len(planes) != count * dtype.itemsize:
            raise ValueError("Expected as many bytes as the weights have. The file is damaged.")
        data = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    elif form == _PLANES:
        data = np.stack([_read_plane(reader, count) for _ in range(dtype.itemsize)], 1).tobytes()
    else:
        raise ValueError(f"Expected a form of {dtype} numbers. Received: {form}.")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


def _read_plane(reader: Reader, count: int) -> np.ndarray:
    if not reader.take(1)[0]:
        return np.frombuffer(reader.take(count), np.uint8)
    symbols = decode_symbols(reader, count)
    if symbols.max(initial=0) > 255:
        raise ValueError("Expected bytes of numbers. Received: larger ones. The file is damaged.")
    return symbols.astype(np.uint8)


def inflate(data: bytes, limit: int, dictionary: bytes = b"") -> bytes:
    """Undoes deflate; raises `ValueError` for damaged data and for more than `limit` bytes."""
    try:
        inflater = zlib.decompressobj(zdict=dictionary)
        inflated = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"Expected deflated bytes. Received: {error}. It is damaged.") from error
    if len(inflated) > limit or not inflater.eof or inflater.unused_data:
        raise ValueError("Expected deflated bytes of a known length. The file is damaged.")
    return inflated


# --- codebook -------------------------------------------------------------------------------------


def _codebook(array: np.ndarray, most: int) -> Iterator[tuple[Writer, np.ndarray]]:
    """Zero, and a table of the other values. By their bits, so that −0 and NaN are kept.

    Yields the head, which holds the table, and the symbols; nothing where there are more than
    `most` values.
    """
    bits = np.ascontiguousarray(array).view(np.uint32)
    found = few_values(bits.ravel(), min(most, array.size // 2 + 1))
    if found is None:
        return
    patterns, index = found
    # Symbol 0 is the value +0, whether it occurs or not.
    symbols = index.reshape(array.shape) + (0 if patterns[0] == 0 else 1)
    values = patterns[patterns != 0].view(np.float32)
    writer = _head(_CODEBOOK).varint("framing", values.size)
    yield writer.extend(encode_plain(values, "codebook")), symbols


def few_values(flat: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`np.unique` with the inverse, or `None` where there are more than `limit` values.

    Sorting a large array takes longer than finding each of its entries among a few values, which a
    sample has shown.
    """
    if flat.size <= 2 * _SAMPLE:
        patterns, index = np.unique(flat, return_inverse=True)
        return None if patterns.size > limit else (patterns, index)
    sample = flat[:: flat.size // _SAMPLE]
    patterns = np.unique(sample)
    # Of 65536 equally frequent values, a sample of as many holds 63 %.
    if patterns.size > min(limit, 0.65 * sample.size):
        return None
    for _ in range(2):
        index = np.minimum(np.searchsorted(patterns, flat), patterns.size - 1)
        missing = flat[patterns[index] != flat]
        if not missing.size:
            return (patterns, index) if patterns.size <= limit else None
        if patterns.size + np.unique(missing[:_SAMPLE]).size > limit:
            return None
        patterns = np.union1d(patterns, missing)
    return None


def _read_codebook(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    values = decode_plain(reader, reader.varint(_MAX_CODEBOOK), np.dtype(np.float32))
    index = decode_integers(reader, shape)
    if index.max(initial=0) > values.size:
        raise ValueError("Expected an index into the codebook. The file is damaged.")
    return np.concatenate([np.zeros(1, np.float32), values])[index]


# --- plain floats with zeros between -------------------------------------------------------------


def _sparse(array: np.ndarray, coder: str) -> Writer:
    kept = np.ascontiguousarray(array).view(np.uint32) != 0
    writer = _head(_SPARSE).extend(encode_integers(kept, coder))
    return writer.extend(encode_plain(array[kept], "floats"))


def _read_sparse(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    kept = decode_integers(reader, shape) != 0
    array = np.zeros(shape, np.float32)
    array[kept] = decode_plain(reader, int(np.count_nonzero(kept)), np.dtype(np.float32))
    return array


# --- codes and scales -----------------------------------------------------------------------------


def find_grid(array: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """`(codes, scales)` with array = codes · scales to the bit, or `None` where there are none.

    Codes are whole numbers in [−127, 127]; there is a scale for each position along `axes`. The
    scale of a row is looked for among max|row| / n, n = 127, 126, …, 1, and its neighbours.
    """
    moved = np.moveaxis(array, axes, range(len(axes)))
    rows = moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)
    # −0 has no code.
    if not np.isfinite(rows).all() or np.any(np.signbit(rows) & (rows == 0)):
        return None
    scales = np.zeros(len(rows), np.float32)
    used = np.flatnonzero(rows.any(1))
    # Floats fail at the first row, and need not be tried on all of them.
    if used.size:
        scales[used[0]] = _first_scale(rows[used[0]])
        if scales[used[0]] == 0:
            return None
        scales[used[1:]] = _scales(rows[used[1:]])
        if not scales[used].all():
            return None
    codes = np.rint(rows / np.where(scales == 0, np.float32(1), scales)[:, None]).astype(np.int64)
    return np.moveaxis(codes.reshape(moved.shape), range(len(axes)), axes), scales


def _first_scale(row: np.ndarray) -> np.float32:
    """`_scales` of one row, with all candidates at once."""
    middle = np.abs(row).max() / np.arange(_LARGEST_CODE, 0, -1, dtype=np.float32)
    around = [middle, *(np.nextafter(middle, np.float32(away)) for away in (0, np.inf))]
    candidates = np.stack(around, 1).ravel()
    usable = np.repeat(middle >= np.finfo(np.float32).tiny, len(around))
    fits = usable & _on_grid(
        np.broadcast_to(row[:64], (candidates.size, row[:64].size)), candidates
    )
    for scale in candidates[fits]:
        if _on_grid(row[None], scale[None])[0]:
            return scale
    return np.float32(0)


def _scales(rows: np.ndarray) -> np.ndarray:
    """The first scale that fits each row of non-zero weights; 0 where none does."""
    scales, open_rows = np.zeros(len(rows), np.float32), np.arange(len(rows))
    largest = np.abs(rows).max(1, initial=0)
    for n in range(_LARGEST_CODE, 0, -1):
        for away in (None, np.float32(0), np.float32(np.inf)):
            middle = largest[open_rows] / np.float32(n)
            scale = middle if away is None else np.nextafter(middle, away)
            # Most candidates fail on the first few weights.
            fits = _on_grid(rows[open_rows, :64], scale) & (middle >= np.finfo(np.float32).tiny)
            fits[fits] = _on_grid(rows[open_rows[fits]], scale[fits])
            scales[open_rows[fits]] = scale[fits]
            open_rows = open_rows[~fits]
    return scales


def _on_grid(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (np.rint(rows / scales[:, None]) * scales[:, None] == rows).all(1)


def _grid(array: np.ndarray) -> Iterator[tuple[Writer, np.ndarray]]:
    """Codes and scales, for each way in which scales may lie along the axes.

    Yields the head, which holds scales and codes, and the symbols.
    """
    last, fitted = array.ndim - 1, False
    for axes in _axes(array.ndim):
        # A scale for each pair of channels, as of a depthwise kernel, takes the most bytes.
        if len(axes) == 2 and fitted:
            continue
        channels = int(np.prod([array.shape[axis] for axis in axes]))
        # A scale for a few weights takes more than they do.
        found = find_grid(array, axes) if 4 * channels <= array.size else None
        if found is None:
            continue
        fitted = True
        codes, scales = found
        # Symbol 0 is the code 0; the others follow in the order of the table.
        shifted = codes + _LARGEST_CODE
        occurs = np.bincount(shifted.ravel(), minlength=2 * _LARGEST_CODE + 1) > 0
        occurs[_LARGEST_CODE] = False
        others = np.flatnonzero(occurs) - _LARGEST_CODE
        places = np.zeros(occurs.size, np.int64)
        places[occurs] = np.arange(1, others.size + 1)
        symbols = places[shifted]
        sides = sum(1 << (last - axis) for axis in axes)
        writer = _head(_GRID).varint("framing", sides).extend(encode_plain(scales, "scales"))
        writer.varint("framing", others.size).add("codebook", others.astype(np.int8).tobytes())
        yield writer, symbols


def _axes(ndim: int) -> list[tuple[int, ...]]:
    """Where output channels may lie: nowhere (one scale), last, last but one, or both."""
    return [(), (ndim - 1,), (ndim - 2,), (ndim - 2, ndim - 1)]


def _read_grid(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    last = len(shape) - 1
    sides = reader.varint(3)
    axes = tuple(axis for axis in (last - 1, last) if axis >= 0 and sides >> (last - axis) & 1)
    along = tuple(n if a in axes else 1 for a, n in enumerate(shape))
    count = int(np.prod(along))
    scales = decode_plain(reader, count, np.dtype(np.float32)).reshape(along)
    others = np.frombuffer(reader.take(reader.varint(2 * _LARGEST_CODE)), np.int8)
    symbols = decode_integers(reader, shape)
    if symbols.max(initial=0) > others.size:
        raise ValueError("Expected a code of the table. The file is damaged.")
    codes = np.concatenate([np.zeros(1, np.int8), others])[symbols]
    return codes.astype(np.float32) * scales
