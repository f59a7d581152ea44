"""`pack` and `unpack`: a model in as few bytes as its zeros and its few values allow.

A file is: `TFCP`, the version, the checksum of all that follows (BLAKE2b, 8 bytes), the length
of the architecture and the architecture, and the weights of each layer in the order of the model.
Shapes and dtypes are those that the architecture gives, so no part of the weights can take more
memory than the model itself takes; and for the model itself there is a limit (`max_weights`).
"""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterator

import keras
import numpy as np

from tfcompress.files.writing import write_atomically
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.paths import layer_paths
from tfcompress.model.progress import Progress
from tfcompress.model.strip import strip
from tfcompress.sharing.codec.architecture import (
    build_model,
    decode_architecture,
    encode_architecture,
)
from tfcompress.sharing.codec.buffers import Reader, Writer
from tfcompress.sharing.codec.entropy import CODERS
from tfcompress.sharing.codec.report import PackedArray, PackReport
from tfcompress.sharing.codec.tensors import METHODS, decode_tensor, encode_tensor

_MAGIC = b"TFCP"
_VERSION = 2
_DIGEST = 8
# Weights that a packed file may declare before it is refused: at least so many, and so many for
# each of its bytes. The best that pruning and coding have reached is some hundred to a byte.
_FREE_WEIGHTS, _WEIGHTS_PER_BYTE = 2**22, 2**9


def pack(model: keras.Model, path: str | os.PathLike, *, coder: str = "auto") -> PackReport:
    """Writes `model` as a packed file (Han et al. 2016, "Deep Compression", section 4).

    What is packed is the stripped model, exact to the bit. Each array of weights takes the
    shortest of: a codebook and an index into it; integer codes and their scales; plain floats, with
    or without the zeros between them, in half precision where that is exact. Zeros are left out by
    a relative index of bounded gaps or by a coded mask; index, values and masks are entropy coded.
    So prune, cluster or quantize first: a model of unlike floats takes nearly as many bytes as its
    weights. It takes a second for some 20 MB of weights; after ten seconds it prints how far it is.

    Args:
        model: A Sequential or Functional model, compressed in any way or not at all.
        path: The file to write.
        coder: `"huffman"`, as in the paper; `"ans"`; `"fixed"`: none, every symbol in as many bits
            as its alphabet takes; or `"auto"`: the shortest, stream by stream.

    Returns:
        What every byte is spent on. Print it.

    Raises:
        ValueError: An unknown coder, a model that cannot be stripped, a folder that does not exist,
            or what cannot be written without code or other files: `Lambda`, classes that are not
            registered, functions as activations (registered ones too; those of Keras go by name),
            `StringLookup`, `IntegerLookup`, `TextVectorization`. Nothing is written then.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> report = tfc.pack(tfc.cluster(model, 16), "model.packed")
        >>> np.unique(tfc.unpack("model.packed").layers[-1].kernel).size
        16
    """
    path = pathlib.Path(path)
    if coder not in CODERS:
        raise ValueError(f"Expected coder to be one of {CODERS}. Received: {coder=}.")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"Expected the path of a file in an existing folder. Received: {str(path)!r}."
        )
    plain = strip(model)
    data, arrays, parts = encode(plain, coder)
    _check(plain, data)
    write_atomically(path, data)
    return PackReport(str(path), len(data), tuple(arrays), parts)


def unpack(
    path: str | os.PathLike, *, verify_checksum: bool = True, max_weights: int | None = None
) -> keras.Model:
    """Reads a packed file: the plain Keras model that was packed, uncompiled.

    Nothing in the file is executed. The model may use Keras' own layers, and custom ones that this
    program has registered.

    Args:
        path: A file that `pack` wrote.
        verify_checksum: With `False` damage that the format itself does not show goes unnoticed.
        max_weights: The most weights that memory is taken for, from 0 on; by default 4 million and
            512 more for each byte of the file, which only models of next to nothing but zeros
            exceed.

    Raises:
        ValueError: The file is truncated, altered, of another version, or no packed file; or its
            model has more weights than `max_weights`, or more layers than its bytes allow.
        OSError: There is no file of that path, or it cannot be read.
    """
    data = pathlib.Path(path).read_bytes()
    if max_weights is None:
        max_weights = _FREE_WEIGHTS + _WEIGHTS_PER_BYTE * len(data)
    return decode(data, verify_checksum=verify_checksum, max_weights=max_weights)


def encode(model: keras.Model, coder: str) -> tuple[bytes, list[PackedArray], dict[str, int]]:
    """The bytes of a plain model, with an account of them."""
    architecture = encode_architecture(model)
    body = Writer().varint("framing", len(architecture)).add("architecture", architecture)
    arrays, paths = [], layer_paths(model)
    with Progress(f"pack {model.name}", max(model.count_params(), 1)) as progress:
        for layer, store in _stores(model):
            for key, array in store.items():
                written = encode_tensor(array, coder)
                arrays.append(
                    PackedArray(
                        f"{paths[id(layer)]}/{_variable_name(layer, key, array)}",
                        array.shape,
                        METHODS[written.data[0]],
                        int(np.count_nonzero(array)),
                        int(np.unique(array).size),
                        len(written),
                        dict(written.parts),
                    )
                )
                body.extend(written)
                progress.advance(array.size)
    head = _MAGIC + bytes([_VERSION]) + _digest(bytes(body.data))
    parts = collections.Counter(body.parts) + collections.Counter(framing=len(head))
    return head + bytes(body.data), arrays, dict(parts)


def decode(
    data: bytes, *, verify_checksum: bool = True, max_weights: int | None = None
) -> keras.Model:
    """The model in the bytes of a packed file, of any size where `max_weights` is `None`."""
    reader = open_body(data, verify_checksum)
    config = decode_architecture(reader.take(reader.varint(reader.left)))
    model = build_model(config, max_weights)
    read = []
    try:
        for layer, store in _stores(model):
            arrays = {k: decode_tensor(reader, a.shape, a.dtype) for k, a in store.items()}
            read.append((layer, arrays))
        reader.finish()
        for layer, arrays in read:
            layer.load_own_variables(arrays)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Expected"):
            raise
        raise ValueError(
            "Expected the weights of the layers in the packed file. Received: "
            f"{type(error).__name__}: {error}. The file is damaged."
        ) from error
    return model


def open_body(data: bytes, verify_checksum: bool = True) -> Reader:
    """Checks the head of a file and returns a reader of what follows."""
    head = Reader(data)
    if head.left < len(_MAGIC) or head.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("Expected a file that tfcompress.pack wrote. Received: something else.")
    version = head.take(1)[0]
    if version != _VERSION:
        raise ValueError(
            f"Expected a packed file of version {_VERSION}. Received: version {version}. Read it "
            "with the tfcompress that wrote it."
        )
    digest = head.take(_DIGEST)
    body = head.take(head.left)
    if verify_checksum and digest != _digest(body):
        raise ValueError(
            "Expected a packed file as it was written. Received: one whose checksum does not fit. "
            "It is truncated or altered: fetch it again."
        )
    return Reader(body)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()


def _stores(model: keras.Model) -> Iterator[tuple[keras.Layer, dict[str, np.ndarray]]]:
    """Every layer with weights of its own, and these as Keras saves them."""
    for layer in iterate_layers(model):
        store: dict[str, np.ndarray] = {}
        layer.save_own_variables(store)
        if store:
            yield layer, {key: np.asarray(value) for key, value in store.items()}


def _variable_name(layer: keras.Layer, key: str, array: np.ndarray) -> str:
    """What the layer calls the variable that it saves under a number."""
    if key.isdigit() and int(key) < len(layer.weights):
        variable = layer.weights[int(key)]
        if tuple(variable.shape) == array.shape:
            return variable.name
    return key


def _check(model: keras.Model, data: bytes) -> None:
    """Reads back what is about to be written."""
    again = decode(data)
    for (layer, store), (_, other) in zip(_stores(model), _stores(again), strict=True):
        for key, array in store.items():
            if array.tobytes() != other[key].tobytes():
                raise ValueError(
                    f"Expected to read back the weights that were packed. Received: others for "
                    f"{layer.name!r}. Please report this model; nothing was written."
                )
