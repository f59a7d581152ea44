"""Coding of weight arrays, exact to the bit: a codebook, codes and scales, or plain floats."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from tfcompress.sharing.codec.buffers import Reader, Writer, smallest
from tfcompress.sharing.codec.integers import decode_integers, encode_integers

_PLAIN, _CODEBOOK, _GRID, _SPARSE = range(4)
_SINGLE, _HALF, _DEFLATED = range(3)
#: What the methods are called in reports.
METHODS = ("plain", "codebook", "codes and scales", "sparse")

# More distinct values than this are not a codebook.
_MAX_CODEBOOK = 2**16
_LARGEST_CODE = 127


def encode_tensor(array: np.ndarray, coder: str = "auto") -> Writer:
    """Codes one array, the shortest way; shape and dtype are not stored.

    Args:
        array: Any shape and dtype.
        coder: One of `entropy.CODERS`.
    """
    array = np.asarray(array)
    candidates = [_head(_PLAIN).extend(encode_plain(array, "floats"))]
    if array.dtype == np.float32 and array.size > 1:
        candidates.extend(_codebook(array, coder))
        candidates.append(_sparse(array, coder))
        if array.ndim > 1:
            candidates.extend(_grid(array, coder))
    return smallest(candidates)


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
    """Values as they are, as half precision where that is exact, or deflated by byte planes."""
    flat = array.ravel()
    flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    candidates = [Writer().add(part, bytes([_SINGLE]) + flat.tobytes())]
    if array.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = flat.astype("<f2")
        if half.astype("<f4").tobytes() == flat.tobytes():
            candidates.append(Writer().add(part, bytes([_HALF]) + half.tobytes()))
    planes = np.frombuffer(flat.tobytes(), np.uint8).reshape(-1, flat.dtype.itemsize).T
    deflated = zlib.compress(planes.tobytes(), 9)
    writer = Writer().add(part, bytes([_DEFLATED])).varint(part, len(deflated))
    return smallest([*candidates, writer.add(part, deflated)])


def decode_plain(reader: Reader, count: int, dtype: np.dtype) -> np.ndarray:
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
    else:
        raise ValueError(f"Expected a form of {dtype} numbers. Received: {form}.")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


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


def _codebook(array: np.ndarray, coder: str) -> Iterator[Writer]:
    """Zero, and a table of the other values. By their bits, so that −0 and NaN are kept."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    patterns, index = np.unique(bits, return_inverse=True)
    if patterns.size > min(_MAX_CODEBOOK, array.size // 2 + 1):
        return
    # Symbol 0 is the value +0, whether it occurs or not.
    symbols = index.reshape(array.shape) + (0 if patterns[0] == 0 else 1)
    values = patterns[patterns != 0].view(np.float32)
    writer = _head(_CODEBOOK).varint("framing", values.size)
    writer.extend(encode_plain(values, "codebook"))
    yield writer.extend(encode_integers(symbols, coder))


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
    for part in (used[:1], used[1:]):
        scales[part] = _scales(rows[part])
        if not scales[part].all():
            return None
    codes = np.rint(rows / np.where(scales == 0, np.float32(1), scales)[:, None]).astype(np.int64)
    return np.moveaxis(codes.reshape(moved.shape), range(len(axes)), axes), scales


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


def _grid(array: np.ndarray, coder: str) -> Iterator[Writer]:
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
        others = np.unique(codes[codes != 0])
        symbols = np.where(codes == 0, 0, np.searchsorted(others, codes) + 1)
        sides = sum(1 << (last - axis) for axis in axes)
        writer = _head(_GRID).varint("framing", sides).extend(encode_plain(scales, "scales"))
        writer.varint("framing", others.size).add("codebook", others.astype(np.int8).tobytes())
        yield writer.extend(encode_integers(symbols, coder))


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
