"""Entropy coding of symbols: Huffman, as in Deep Compression, or ANS, from `constriction`.

A stream is: the size K of its alphabet, the coder, the table of frequencies, the coded bits.
Coders: fixed width; Huffman (1952); asymmetric numeral systems (Duda 2013), which needs
Σ −log₂ p(symbol) bits to within a few dozen, where Huffman spends at least one bit per symbol.
"""

from __future__ import annotations

import heapq

import numpy as np

from tfcompress.sharing.codec.buffers import Reader, Writer, smallest

#: Values of the argument `coder` of `pack`; `"auto"` takes the smallest, stream by stream.
CODERS = ("auto", "fixed", "huffman", "ans")

_FIXED, _HUFFMAN, _ANS = range(3)
# Table entries up to 127 take one byte, up to this two.
_MAX_FREQUENCY = 2**14 - 1
_MAX_ALPHABET = 2**32
#: Up to so many symbols all that `"auto"` allows is coded and the shortest taken; beyond, the one
#: that is estimated to be the shortest, which is never Huffman.
EXHAUSTIVE = 2**12


def encode_symbols(symbols: np.ndarray, part: str, coder: str = "auto") -> Writer:
    """Codes integers; their number is not stored.

    Args:
        symbols: Integers from 0 on, 1-D.
        part: The part that the bits are counted in; tables are counted in `"tables"`.
        coder: One of `CODERS`.
    """
    symbols = np.asarray(symbols, np.int64)
    if symbols.size == 0:
        return Writer()
    size = int(symbols.max()) + 1
    head = Writer().varint("tables", size)
    if size == 1:
        return head
    # A table longer than the symbols themselves cannot pay.
    if coder == "fixed" or size > 4 * symbols.size:
        return head.extend(_fixed(symbols, size, part))
    counts = np.bincount(symbols, minlength=size)
    frequencies = table(counts)
    if coder == "auto" and symbols.size > EXHAUSTIVE:
        is_even = fixed_bits(symbols.size, size) <= _entropy_bits(counts)
        return head.extend(
            _fixed(symbols, size, part) if is_even else _ans(symbols, frequencies, part)
        )
    candidates = [_fixed(symbols, size, part)]
    if coder != "huffman":
        candidates.append(_ans(symbols, frequencies, part))
    if coder != "ans":
        candidates.append(_huffman(symbols, frequencies, part))
    return head.extend(smallest(candidates))


def decode_symbols(reader: Reader, count: int) -> np.ndarray:
    """Reads `count` symbols, int64.

    Raises:
        ValueError: The stream is truncated or cannot have been written by `encode_symbols`.
    """
    if count == 0:
        return np.zeros(0, np.int64)
    size = reader.varint(_MAX_ALPHABET)
    if size == 0:
        raise _damaged("an empty alphabet")
    if size == 1:
        return np.zeros(count, np.int64)
    method = reader.take(1)[0]
    if method == _FIXED:
        return _read_fixed(reader, count, size)
    if method not in (_HUFFMAN, _ANS):
        raise _damaged(f"the coder {method}")
    if size > reader.left:
        raise _damaged("a table longer than the file")
    frequencies = np.array([reader.varint(_MAX_FREQUENCY) for _ in range(size)], np.float64)
    if not frequencies.any():
        raise _damaged("an empty table")
    words = _read_words(reader)
    return (_read_huffman if method == _HUFFMAN else read_ans)(words, count, frequencies)


def estimated_bits(symbols: np.ndarray, coder: str = "auto") -> float:
    """What coding `symbols` will take: n · H(symbols) and a byte per entry of the table.

    Args:
        symbols: Integers from 0 on, 1-D.
        coder: One of `CODERS`. Huffman's code has a bit for each symbol at least, and a fixed width
            needs no table.
    """
    return counted_bits(np.bincount(symbols), coder) if symbols.size else 0.0


def counted_bits(counts: np.ndarray, coder: str = "auto") -> float:
    """`estimated_bits` of symbols by how often each occurs; the last one does."""
    total = int(counts.sum())
    fixed = fixed_bits(total, counts.size)
    if coder == "fixed" or counts.size > 4 * total:
        return fixed
    if coder == "huffman":
        return min(fixed, huffman_bits(counts) + 8.0 * counts.size)
    return min(fixed, _entropy_bits(counts))


def _entropy_bits(counts: np.ndarray) -> float:
    used = counts[counts > 0]
    return float(-np.sum(used * np.log2(used / counts.sum()))) + 8.0 * counts.size


def fixed_bits(count: int, size: int) -> float:
    """Bits of `count` symbols of an alphabet of `size`, all of one width."""
    return float(count * (size - 1).bit_length())


def huffman_bits(counts: np.ndarray) -> float:
    """Bits of a Huffman code of symbols that occur so often (Huffman 1952)."""
    heap = counts[counts > 0].tolist()
    if len(heap) == 1:
        return float(heap[0])
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        # Every merge adds a bit to all symbols below it.
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return float(bits)


def table(counts: np.ndarray) -> np.ndarray:
    """Counts scaled to [1, 16383] (0 stays 0), from which both sides compute the same model."""
    scale = min(1.0, _MAX_FREQUENCY / counts.max())
    return np.where(counts > 0, np.maximum(np.round(counts * scale), 1), 0)


# --- fixed width ----------------------------------------------------------------------------------


def _fixed(symbols: np.ndarray, size: int, part: str) -> Writer:
    width = (size - 1).bit_length()
    # Bit by bit: a kernel of a hundred million weights would take eight bytes for each.
    bits = np.empty((symbols.size, width), np.uint8)
    for place in range(width):
        bits[:, place] = (symbols >> place) & 1
    packed = np.packbits(bits).tobytes()
    return Writer().add("tables", bytes([_FIXED])).add(part, packed)


def _read_fixed(reader: Reader, count: int, size: int) -> np.ndarray:
    width = (size - 1).bit_length()
    data = np.frombuffer(reader.take(-(-count * width // 8)), np.uint8)
    bits = np.unpackbits(data, count=count * width).reshape(count, width)
    symbols = np.zeros(count, np.int64)
    for place in range(width):
        symbols |= bits[:, place].astype(np.int64) << place
    if symbols.max() >= size:
        raise _damaged("a symbol outside its alphabet")
    return symbols


# --- Huffman --------------------------------------------------------------------------------------


def _huffman(symbols: np.ndarray, frequencies: np.ndarray, part: str) -> Writer:
    from constriction import symbol

    tree = symbol.huffman.EncoderHuffmanTree(frequencies)
    encoder = symbol.QueueEncoder()
    for one in symbols.tolist():
        encoder.encode_symbol(one, tree)
    return _coded(_HUFFMAN, frequencies, encoder.get_compressed()[0], part)


def _read_huffman(words: np.ndarray, count: int, frequencies: np.ndarray) -> np.ndarray:
    from constriction import symbol

    tree = symbol.huffman.DecoderHuffmanTree(frequencies)
    decoder = symbol.QueueDecoder(words)
    # No symbol is shorter than a bit.
    if count > 32 * words.size:
        raise _damaged("too few bits")
    return np.fromiter((decoder.decode_symbol(tree) for _ in range(count)), np.int64, count)


# --- ANS ------------------------------------------------------------------------------------------


def _ans(symbols: np.ndarray, frequencies: np.ndarray, part: str) -> Writer:
    from constriction import stream

    coder = stream.stack.AnsCoder()
    model = stream.model.Categorical(frequencies, perfect=False)
    coder.encode_reverse(symbols.astype(np.int32), model)
    return _coded(_ANS, frequencies, coder.get_compressed(), part)


def read_ans(words: np.ndarray, count: int, frequencies: np.ndarray) -> np.ndarray:
    from constriction import stream

    coder = stream.stack.AnsCoder(words)
    model = stream.model.Categorical(frequencies, perfect=False)
    symbols = coder.decode(model, count).astype(np.int64)
    if not coder.is_empty():
        raise _damaged("bits left over")
    return symbols


def encode_bits(bits: np.ndarray, probabilities: np.ndarray, part: str) -> Writer:
    """Codes each bit by its own probability of being 1, which the reader must know."""
    from constriction import stream

    coder = stream.stack.AnsCoder()
    model = stream.model.Bernoulli(perfect=False)
    coder.encode_reverse(bits.astype(np.int32), model, probabilities)
    return _words(coder.get_compressed(), part)


def decode_bits(reader: Reader, probabilities: np.ndarray) -> np.ndarray:
    """Reads what `encode_bits` wrote, as booleans."""
    from constriction import stream

    coder = stream.stack.AnsCoder(_read_words(reader))
    bits = coder.decode(stream.model.Bernoulli(perfect=False), probabilities)
    if not coder.is_empty():
        raise _damaged("bits left over")
    return bits.astype(bool)


# --- words ----------------------------------------------------------------------------------------


def _coded(method: int, frequencies: np.ndarray, words: np.ndarray, part: str) -> Writer:
    writer = Writer().add("tables", bytes([method]))
    writer.varints("tables", frequencies.astype(np.int64))
    return writer.extend(_words(words, part))


def _words(words: np.ndarray, part: str) -> Writer:
    data = words.astype("<u4").tobytes()
    # The last word's own zero bytes are known to be there; words before it may be zeros that count.
    data = data[:-3] + data[-3:].rstrip(b"\0")
    return Writer().varint(part, len(data)).add(part, data)


def _read_words(reader: Reader) -> np.ndarray:
    data = reader.take(reader.varint(reader.left))
    return np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)


def _damaged(what: str) -> ValueError:
    return ValueError(f"Expected a stream of symbols. Received: {what}. The file is damaged.")
