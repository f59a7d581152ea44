"""Packed files: what comes back, what is counted, and what is refused."""

import copy
import hashlib
import itertools
import json
import random
import zlib

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.model.strip import strip
from tfcompress.quantization.quantize import quantize
from tfcompress.sharing import cluster, pack, unpack
from tfcompress.sharing.codec.architecture import (
    _DICTIONARY,
    build_model,
    check_calls,
    check_config,
    decode_architecture,
)
from tfcompress.sharing.codec.buffers import Writer
from tfcompress.sharing.codec.packing import decode, open_body


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """`(report, stripped model)` of a pruned and clustered model."""
    pruned = keras.models.clone_model(trained)
    pruned.set_weights(trained.get_weights())
    for name in ("conv2", "logits"):
        kernel = pruned.get_layer(name).kernel
        value = kernel.numpy()
        kernel.assign(np.where(np.abs(value) < np.quantile(np.abs(value), 0.8), 0.0, value))
    model = cluster(pruned, 16)
    path = tmp_path_factory.mktemp("packed") / "digits.tfcp"
    return pack(model, path), strip(model)


def test_predictions_come_back_to_the_bit(packed, digits):
    report, plain = packed
    model = unpack(report.path)
    assert [type(layer) for layer in model.layers] == [type(layer) for layer in plain.layers]
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    x = digits[1][0]
    assert np.array_equal(model.predict(x, verbose=0), plain.predict(x, verbose=0))


def test_every_byte_is_counted(packed):
    report, plain = packed
    with open(report.path, "rb") as file:
        size = len(file.read())
    assert report.num_bytes == size == sum(report.parts.values())
    arrays = sum(array.num_bytes for array in report.arrays)
    head = size - arrays - report.parts["architecture"]
    assert 0 < head < 20
    assert report.float_num_bytes == 4 * sum(w.size for w in plain.get_weights())
    assert sum(report.layer_bytes().values()) == arrays
    found = {array.name: array for array in report.arrays}
    assert found["logits/kernel"].distinct == 16
    assert found["logits/kernel"].nonzeros == np.count_nonzero(plain.get_layer("logits").kernel)
    assert "norm/moving_variance" in found
    assert "logits/kernel" in str(report)
    assert str(size // 1000) in str(report)


def test_every_truncation_and_many_flips_are_refused(packed, tmp_path):
    report, _ = packed
    with open(report.path, "rb") as file:
        data = file.read()
    random = np.random.default_rng(0)
    for end in range(len(data)):
        with pytest.raises(ValueError):
            open_body(data[:end])
    for position in random.choice(8 * len(data), 10_000, replace=False):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError):
            open_body(bytes(damaged))
    path = tmp_path / "damaged.tfcp"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="checksum"):
        unpack(path)


def test_without_the_checksum_damage_changes_values_or_is_refused(packed, tmp_path):
    report, plain = packed
    with open(report.path, "rb") as file:
        data = file.read()
    random, path, read = np.random.default_rng(1), tmp_path / "damaged.tfcp", 0
    architecture = report.parts["architecture"]
    bits = [*random.choice(range(13 * 8, (15 + architecture) * 8), 10)]
    bits += [*random.choice(range((15 + architecture) * 8, len(data) * 8), 15)]
    for position in bits:
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        try:
            model = unpack(path, verify_checksum=False)
        except ValueError:
            continue
        read += 1
        assert [w.shape for w in model.get_weights()] == [w.shape for w in plain.get_weights()]
    assert read > 0


def test_all_kinds_of_layers(tmp_path):
    inputs = keras.Input((8, 6))
    x = layers.Normalization(name="input_norm")(inputs)
    x = layers.SeparableConv1D(5, 3, name="separable")(x)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.ops.relu(x) * 0.5 + 1.0
    inner = keras.Sequential([keras.Input((6, 8)), layers.Dense(4), layers.Dropout(0.3)])
    x = layers.Flatten()(inner(x))
    model = keras.Model(inputs, {"a": layers.Dense(3, name="a")(x), "b": layers.ReLU(name="b")(x)})
    data = np.random.default_rng(0).normal(3, 2, (16, 8, 6)).astype(np.float32)
    model.get_layer("input_norm").adapt(data)
    report = pack(model, tmp_path / "m.tfcp")
    again, plain = unpack(tmp_path / "m.tfcp"), strip(model)
    for key, value in plain.predict(data, verbose=0).items():
        assert np.array_equal(again.predict(data, verbose=0)[key], value)
    assert report.ratio > 0.7


def test_quantized_weights_take_a_byte_and_no_more(trained, digits, tmp_path):
    model = quantize(trained, calibration_data=digits[0][0][:64])
    report = pack(model, tmp_path / "q.tfcp")
    found = {array.name: array for array in report.arrays}
    for name in ("conv2", "logits"):
        assert found[f"{name}/kernel"].method == "codes and scales"
        assert found[f"{name}/kernel"].bits < 9.2


def test_what_a_file_may_not_name(packed):
    with open(packed[0].path, "rb") as file:
        reader = open_body(file.read())
    good = decode_architecture(reader.take(reader.varint(reader.left)))
    nodes = [
        {"class_name": "__lambda__", "config": {"value": "x"}},
        {"class_name": "Lambda", "module": "keras.layers", "config": {}},
        {"class_name": "function", "module": "builtins", "config": "exec"},
        {"class_name": "get_file", "module": "keras.utils", "config": {}},
        {"class_name": "Popen", "module": "subprocess", "config": {}},
        {"class_name": "TextVectorization", "module": "keras.layers", "config": {}},
        {"class_name": "__typespec__", "module": "os", "config": [], "spec_name": "system"},
        {"class_name": "Own", "module": None, "registered_name": "nobody>Own", "config": {}},
        {"class_name": ["Dense"], "module": "keras.layers", "config": {}},
    ]
    check_config(good)
    for node in nodes:
        bad = copy.deepcopy(good)
        bad["config"]["layers"][2]["config"]["kernel_initializer"] = node
        assert json.dumps(bad)
        with pytest.raises(ValueError, match=r"may not name|no code|without lookups"):
            check_config(bad)


@keras.saving.register_keras_serializable("tests")
def own_activation(x):
    return keras.ops.relu(x) + 0.1 * x


def test_what_cannot_be_packed_is_told_apart(tmp_path):
    inputs, text = keras.Input((3,)), keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    for output, message in (
        (layers.Dense(2, activation=own_activation)(inputs), "into a registered layer"),
        (lookup(text), "without lookups.*'StringLookup'"),
    ):
        model = keras.Model(text if "lookup" in message else inputs, output)
        with pytest.raises(ValueError, match=message):
            pack(model, tmp_path / "a")
    pack(keras.Model(inputs, layers.Dense(2, activation=keras.ops.silu)(inputs)), tmp_path / "a")


def file_of(config):
    """A packed file with a checksum that fits, and no weights."""
    deflater = zlib.compressobj(9, zdict=_DICTIONARY)
    architecture = deflater.compress(json.dumps(config).encode()) + deflater.flush()
    body = Writer().varint("framing", len(architecture)).add("architecture", architecture)
    digest = hashlib.blake2b(bytes(body.data), digest_size=8).digest()
    return b"TFCP\x02" + digest + bytes(body.data)


@pytest.mark.parametrize("units", [20_000_000, 10**12])
def test_no_memory_is_taken_for_weights_that_a_small_file_claims(tmp_path, units):
    pack(keras.Sequential([keras.Input((6,)), layers.Dense(3)]), tmp_path / "good")
    reader = open_body((tmp_path / "good").read_bytes())
    config = decode_architecture(reader.take(reader.varint(reader.left)))
    config["config"]["layers"][1]["config"]["units"] = units
    (tmp_path / "bad").write_bytes(file_of(config))
    with pytest.raises(ValueError, match=rf"at most .* Received: one of {6 * units:,}"):
        unpack(tmp_path / "bad")
    with pytest.raises(ValueError, match="at most 20 weights"):
        unpack(tmp_path / "good", max_weights=20)
    assert unpack(tmp_path / "good", max_weights=21).count_params() == 21


def text_of(nodes):
    """A file whose architecture is this JSON."""
    deflater = zlib.compressobj(9, zdict=_DICTIONARY)
    architecture = deflater.compress(nodes.encode()) + deflater.flush()
    body = Writer().varint("framing", len(architecture)).add("architecture", architecture)
    digest = hashlib.blake2b(bytes(body.data), digest_size=8).digest()
    return b"TFCP\x02" + digest + bytes(body.data)


def config_of(model):
    return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # 60 kB, of which came 2.6 GB and two minutes.
        ("[" + "[]," * 20_000_000 + "[]]", "known length"),
        ("[" + "[]," * 600_000 + "[]]", "known length"),
        ('{"a": [' + "[]," * 80_000 + "[]]}", "values, as its bytes allow"),
        ("[" * 100_000 + "]" * 100_000, "configuration"),
        ("[]", "configuration"),
        ("7", "configuration"),
        ('{"module": "keras", "class_name": "Sequential", "config": {}}', "can build"),
        (
            '{"module": "keras", "class_name": "Sequential", '
            '"config": {"name": "a", "layers": []}}',
            "without inputs|can build",
        ),
    ],
    ids=["flood", "lists", "values", "deep", "list", "number", "no_layers", "no_inputs"],
)
def test_an_architecture_takes_no_more_than_its_bytes_allow(text, message, tmp_path):
    (tmp_path / "bad").write_bytes(text_of(text))
    with pytest.raises(ValueError, match=rf"(?s)^Expected.*({message})"):
        unpack(tmp_path / "bad")


def test_layers_in_an_order_that_takes_keras_long_are_refused(tmp_path):
    inputs = x = keras.Input((2,))
    for index in range(4):
        x = layers.Dense(2, name=f"dense_{index}")(x)
    config = config_of(keras.Model(inputs, x))
    first, template = config["config"]["layers"][:2]
    template = json.dumps(template).replace(first["config"]["name"], "SOURCE")

    def chain(count, turned):
        names = [first["config"]["name"], *(f"dense_{i}" for i in range(count))]
        made = [
            json.loads(template.replace("dense_0", after).replace("SOURCE", before))
            for before, after in itertools.pairwise(names)
        ]
        config["config"]["layers"] = [first, *(reversed(made) if turned else made)]
        config["config"]["output_layers"] = [[names[-1], 0, 0]]
        return config

    check_calls(chain(1500, False), 2000)
    with pytest.raises(ValueError, match="at most 2,000 calls"):
        check_calls(chain(1500, True), 2000)
    inner = {"class_name": "Sequential", "config": {"name": "a", "layers": [{}] * 100}}
    check_calls({"config": {"layers": [inner]}}, 6000)
    with pytest.raises(ValueError, match="at most 5,000 calls"):
        check_calls({"config": {"layers": [inner]}}, 5000)
    # As Keras builds it, in the order that it writes.
    assert len(build_model(chain(8, False)).layers) == 9


def test_a_long_sequential_is_built_once(monkeypatch):
    """Keras would build it anew for every layer."""
    model = keras.Sequential(
        [keras.Input((2,)), *(layers.Dense(2) for _ in range(12))], name="long"
    )
    config, calls = config_of(model), []
    stock = keras.Sequential._maybe_rebuild

    def count(model):
        calls.append(1)
        stock(model)

    monkeypatch.setattr(keras.Sequential, "_maybe_rebuild", count)
    again = build_model(config)
    assert len(calls) == 1
    assert isinstance(again, keras.Sequential)
    assert again.name == "long"
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert again.output_shape == (None, 2)


def test_names_of_outputs_come_back(tmp_path):
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.ReLU()], name="head")
    model = keras.Model(inputs, inner(inputs))
    pack(model, tmp_path / "a")
    assert unpack(tmp_path / "a").output_names == model.output_names == ["head"]
    reader = open_body((tmp_path / "a").read_bytes())
    config = decode_architecture(reader.take(reader.varint(reader.left)))
    for names in ("head", [1], ["head", "tail"]):
        (tmp_path / "bad").write_bytes(file_of({**config, "output_names": names}))
        with pytest.raises(ValueError, match="name for each of 1 outputs"):
            unpack(tmp_path / "bad")


def test_ten_thousand_flips_and_every_truncation_of_a_whole_file(tmp_path, monkeypatch):
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(2, name="y")(inputs), name="m")
    pack(model, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    built = {}

    def build(config, max_weights=None):
        # Keras takes its time: an architecture that was read whole is built once.
        key = json.dumps(config)
        if key not in built:
            built[key] = build_model(config, max_weights)
        return built[key]

    monkeypatch.setattr("tfcompress.sharing.codec.packing.build_model", build)
    damaged = [data[:end] for end in range(len(data))]
    for _ in range(10_000):
        flipped = bytearray(data)
        # Damage to the architecture is mostly seen at once: half of it goes elsewhere.
        region = range(len(data) - 30, len(data)) if random.random() < 0.5 else range(len(data))
        for position in random.sample(region, random.randint(1, 4)):
            flipped[position] ^= 1 << random.randrange(8)
        damaged.append(bytes(flipped))
    read = 0
    for number, one in enumerate(damaged):
        try:
            again = decode(one, verify_checksum=False, max_weights=2**20)
        except ValueError:
            continue
        read += 1
        assert number >= len(data), "a truncated file was read"
        assert [w.dtype for w in again.get_weights()] == ["float32", "float32"]
    assert 0 < read < 10_000


def test_mistakes(trained, tmp_path):
    with pytest.raises(ValueError, match="coder"):
        pack(trained, tmp_path / "a", coder="zip")
    with pytest.raises(ValueError, match="existing folder"):
        pack(trained, tmp_path / "nowhere" / "a")
    inputs = keras.Input((3,))
    with_code = keras.Model(inputs, layers.Lambda(lambda x: x + 1)(inputs))
    with pytest.raises(ValueError, match="Lambda"):
        pack(with_code, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("TFLITE3, as it were")
    with pytest.raises(ValueError, match="something else"):
        unpack(tmp_path / "text")
    (tmp_path / "next").write_bytes(b"TFCP\x07" + bytes(20))
    with pytest.raises(ValueError, match="version 7"):
        unpack(tmp_path / "next")
