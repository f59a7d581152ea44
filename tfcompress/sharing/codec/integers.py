"""Coding of integer arrays in which 0 is the background: the weights that were pruned.

Three layouts, of which the shortest is taken:

- dense: every entry is a symbol;
- sparse: the distance from each non-zero entry to the next, in at most b bits, a longer one in
  several symbols (the relative index of Han et al. 2016, figure 2), and the values;
- mask: one bit per entry, coded by a probability that follows from how many entries its row and
  its column hold, p = rows[i] · columns[j] / total, and the values. Rows that are empty (the
  borders of an image) then cost nothing.
"""

from __future__ import annotations

import numpy as np

from tfcompress.sharing.codec.buffers import Reader, Writer, smallest
from tfcompress.sharing.codec.entropy import (
    EXHAUSTIVE,
    counted_bits,
    decode_bits,
    decode_symbols,
    encode_bits,
    encode_symbols,
    estimated_bits,
)

_DENSE, _SPARSE, _MASK = range(3)
_INDEX_BITS = range(2, 13)
_MAX_MASK = 2**25


def encode_integers(array: np.ndarray, coder: str = "auto") -> Writer:
    """Codes an array of integers from 0 on; its shape is not stored.

    Args:
        array: Any shape; the last axis makes the columns, all others the rows.
        coder: One of `entropy.CODERS`; with `"fixed"` and `"huffman"` the layouts of the paper
            alone.
    """
    flat = array.ravel().astype(np.int64)
    positions = np.flatnonzero(flat)
    others = flat[positions] - 1
    may_skip = positions.size < flat.size
    may_mask = coder in ("auto", "ans") and flat.size <= _MAX_MASK and may_skip
    may_mask = may_mask and positions.size > 0
    layouts = [_DENSE, *([_SPARSE] if may_skip else []), *([_MASK] if may_mask else [])]
    bits = _best_index_bits(positions, coder) if may_skip else (0, 0.0)
    if flat.size > EXHAUSTIVE:
        values = estimated_bits(others, coder)
        estimates = {
            _DENSE: lambda: estimated_bits(flat, coder),
            _SPARSE: lambda: bits[1] + values,
            _MASK: lambda: _mask_bits(array) + values,
        }
        layouts = [min(layouts, key=lambda layout: estimates[layout]())]
    candidates = []
    for layout in layouts:
        if layout == _DENSE:
            candidates.append(_head(_DENSE).extend(encode_symbols(flat, "values", coder)))
            continue
        index = _mask(array) if layout == _MASK else _sparse(positions, bits[0], coder)
        candidates.append(index.extend(encode_symbols(others, "values", coder)))
    return smallest(candidates)


def decode_integers(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an array of `shape`, int64; raises `ValueError` on what cannot have been written."""
    size = int(np.prod(shape))
    layout = reader.take(1)[0]
    if layout == _DENSE:
        return decode_symbols(reader, size).reshape(shape)
    if layout == _SPARSE:
        positions = _read_sparse(reader, size)
    elif layout == _MASK:
        positions = _read_mask(reader, shape)
    else:
        raise _damaged(f"the layout {layout}")
    flat = np.zeros(size, np.int64)
    flat[positions] = decode_symbols(reader, positions.size) + 1
    return flat.reshape(shape)


def _head(layout: int) -> Writer:
    return Writer().add("framing", bytes([layout]))


# --- relative index -------------------------------------------------------------------------------


def relative_index(positions: np.ndarray, bits: int) -> np.ndarray:
    """Symbols in [0, 2ᵇ): the zeros before each entry; 2ᵇ − 1 skips as many, without an entry."""
    longest = 2**bits - 1
    gaps = np.diff(positions, prepend=-1) - 1
    skips, rest = np.divmod(gaps, longest)
    symbols = np.full(positions.size + int(skips.sum()), longest, np.int64)
    symbols[np.cumsum(skips + 1) - 1] = rest
    return symbols


def absolute_index(symbols: np.ndarray, bits: int) -> np.ndarray:
    """The positions that `relative_index` got."""
    longest = 2**bits - 1
    is_entry = symbols < longest
    return (np.cumsum(np.where(is_entry, symbols + 1, longest)) - 1)[is_entry]


def _best_index_bits(positions: np.ndarray, coder: str) -> tuple[int, float]:
    """The width of the index that takes the fewest bits, and these."""
    gaps = np.bincount(np.diff(positions, prepend=-1) - 1)
    lengths = np.flatnonzero(gaps)
    gaps = gaps[lengths]

    def cost(bits: int) -> float:
        # As of `relative_index`, by how often each gap occurs.
        longest = 2**bits - 1
        skips, rest = np.divmod(lengths, longest)
        counts = np.bincount(rest, weights=gaps, minlength=longest + 1).astype(np.int64)
        counts[longest] += int(np.sum(skips * gaps))
        return counted_bits(counts[: int(np.flatnonzero(counts)[-1]) + 1], coder)

    if not positions.size:
        return _INDEX_BITS[0], 0.0
    best = min(_INDEX_BITS, key=cost)
    return best, cost(best)


def _sparse(positions: np.ndarray, bits: int, coder: str) -> Writer:
    symbols = relative_index(positions, bits)
    writer = _head(_SPARSE).add("framing", bytes([bits]))
    writer.varint("framing", symbols.size)
    return writer.extend(encode_symbols(symbols, "index", coder))


def _read_sparse(reader: Reader, size: int) -> np.ndarray:
    bits = reader.take(1)[0]
    if bits not in _INDEX_BITS:
        raise _damaged(f"an index of {bits} bits")
    # Every symbol stands for one entry at least.
    symbols = decode_symbols(reader, reader.varint(size))
    positions = absolute_index(symbols, bits)
    # The last symbol is an entry, so that there is a last position.
    longest = 2**bits - 1
    if symbols.size and (symbols.max() > longest or symbols[-1] == longest):
        raise _damaged("an index that ends in a gap")
    if symbols.size and positions[-1] >= size:
        raise _damaged("an index beyond the end")
    return positions


# --- mask -----------------------------------------------------------------------------------------


def _mask_bits(array: np.ndarray) -> float:
    """What `_mask` will take: −log₂ of the probability of every bit."""
    bits = _matrix(array)
    rows, columns = bits.sum(1), bits.sum(0)
    odds = _odds(rows, columns)
    ones = bits[np.ix_(rows > 0, columns > 0)].ravel()
    entropy = -float(np.sum(np.log2(np.where(ones, odds, 1.0 - odds))))
    return entropy + estimated_bits(rows) + estimated_bits(columns)


def _matrix(array: np.ndarray) -> np.ndarray:
    return (array != 0).reshape(-1, array.shape[-1] if array.ndim else 1)


def _mask(array: np.ndarray) -> Writer:
    bits = _matrix(array)
    rows, columns = bits.sum(1), bits.sum(0)
    writer = _head(_MASK)
    writer.extend(encode_symbols(rows, "index")).extend(encode_symbols(columns, "index"))
    places = np.ix_(rows > 0, columns > 0)
    return writer.extend(encode_bits(bits[places].ravel(), _odds(rows, columns), "index"))


def _read_mask(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    num_columns = shape[-1] if shape else 1
    num_rows = size // max(num_columns, 1)
    rows = decode_symbols(reader, num_rows)
    columns = decode_symbols(reader, num_columns)
    sums = int(rows.sum()), int(columns.sum())
    too_many = rows.max(initial=0) > num_columns or columns.max(initial=0) > num_rows
    if sums[0] != sums[1] or sums[0] == 0 or too_many:
        raise _damaged("counts of rows and columns that do not agree")
    bits = np.zeros((num_rows, num_columns), bool)
    places = np.ix_(rows > 0, columns > 0)
    bits[places] = decode_bits(reader, _odds(rows, columns)).reshape(bits[places].shape)
    if not np.array_equal(bits.sum(1), rows):
        raise _damaged("rows that do not hold what they should")
    return np.flatnonzero(bits)


def _odds(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Probability of every entry; whole numbers and one division give the same on any machine."""
    counts = np.outer(rows[rows > 0], columns[columns > 0]).astype(np.float64)
    return np.clip(counts / float(rows.sum()), 2.0**-12, 1.0 - 2.0**-12).ravel()


def _damaged(what: str) -> ValueError:
    return ValueError(f"Expected the index of a kernel. Received: {what}. The file is damaged.")
