"""Products of two tensors, attention and embeddings: the file computes what Keras predicts."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.parity.conftest import randomize

STEPS, WIDTH = 10, 16


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).normal(size=(200, STEPS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    """Sentences of 3 to 10 tokens, padded with zeros."""
    ids = np.random.default_rng(0).integers(1, 40, (200, STEPS)).astype(np.int32)
    for sentence, length in zip(ids, np.resize(np.arange(3, STEPS + 1), 200), strict=True):
        sentence[length:] = 0
    return ids


def exported(model, samples, tmp_path):
    """The report of an export after save and load, and its parity by output."""
    randomize(model)
    quantized = tfc.quantize(model, calibration_data=samples[:64])
    assert not quantized.plan.refused_floats
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=samples)
    assert not report.float_tensors
    return quantized, report, {p.output: p for p in report.parity["serving_default"]}


def check(parities, names):
    assert set(parities) == set(names)
    wrong = [p for p in parities.values() if p.equal < 0.99 or p.largest > 1 or p.distinct < 16]
    assert not wrong


def products(inputs):
    """Products of two tensors and projections of one, by name."""
    a, b = layers.Dense(WIDTH)(inputs), layers.Dense(WIDTH)(inputs)
    heads = layers.EinsumDense("abc,cde->abde", (STEPS, 2, 8), bias_axes="de")(a)
    gate = ops.sigmoid(b)
    return {
        "matmul": ops.matmul(a, ops.transpose(b, (0, 2, 1))),
        "einsum": ops.einsum("btd,bsd->bst", a, b),
        "einsum_heads": ops.einsum("bthd,bshd->bhts", heads, heads),
        # A fixed range has another zero point, so LiteRT's own kernel multiplies.
        "fixed_range": ops.matmul(a, ops.transpose(gate, (0, 2, 1))),
        "softmax": ops.matmul(ops.transpose(a, (0, 2, 1)), layers.Softmax()(b)),
        "dot": layers.Dot(axes=(2, 2))([a, b]),
        "dot_of_vectors": layers.Dot(axes=1)([a[:, 0], b[:, 1]]),
        "to_heads": heads,
        "from_heads": layers.EinsumDense(
            "abcd,cde->abe", (STEPS, 12), bias_axes="e", activation="relu"
        )(heads),
        "kernel_transposed": layers.EinsumDense("btd,ndh->btnh", (STEPS, 2, 8))(a),
        "ellipsis": layers.EinsumDense("...x,xy->...y", 12, bias_axes="y")(a),
        "transposed_output": layers.EinsumDense("btd,ds->bst", (5, STEPS), bias_axes="s")(a),
        "softmax_axis": layers.Softmax(axis=1)(a),
    }


def test_products_and_projections(sequences, tmp_path):
    inputs = keras.Input((STEPS, WIDTH), name="x")
    outputs = products(inputs)
    _, report, parities = exported(keras.Model(inputs, outputs), sequences, tmp_path)
    check(parities, outputs)
    assert report.ops["BATCH_MATMUL"] == 7


def attentions(inputs):
    """Layers and functions of attention, by name."""
    a, b = layers.Dense(WIDTH)(inputs), layers.Dense(WIDTH)(inputs)
    shared = layers.MultiHeadAttention(2, 8, name="shared")
    with_scores = layers.MultiHeadAttention(2, 8, value_dim=6, dropout=0.1)
    output, scores = with_scores(a, b, return_attention_scores=True)
    outputs = {
        "multi_head": shared(a, a),
        "shared_causal": shared(b, a, use_causal_mask=True),
        "with_scores": output,
        "grouped": layers.GroupQueryAttention(8, 4, 2)(a, b),
        "dot": layers.Attention(use_scale=True, dropout=0.1)([a, b]),
        "dot_causal": layers.Attention()([a, b], use_causal_mask=True),
        "additive": layers.AdditiveAttention()([a, b]),
        "constant_mask": shared(a, b, attention_mask=np.eye(STEPS, dtype=bool)[None, ::-1]),
    }
    heads = [ops.reshape(x, (-1, STEPS, 2, 8)) for x in (a, b, a)]
    outputs["function"] = ops.dot_product_attention(*heads)
    return {**outputs, "scores": scores}


def test_attention(sequences, tmp_path):
    inputs = keras.Input((STEPS, WIDTH), name="x")
    outputs = attentions(inputs)
    quantized, _, parities = exported(keras.Model(inputs, outputs), sequences, tmp_path)
    check(parities, outputs)
    # One projection for every call of the shared layer.
    names = [layer.name for layer in quantized.layers]
    assert names.count("shared_query") == 1
    assert "shared_query_1" not in names


def masked(inputs):
    """Embeddings of padded tokens and what reads their mask, by name."""
    x = layers.Embedding(40, WIDTH, mask_zero=True, name="embedding")(inputs)
    y = layers.MultiHeadAttention(2, 8, name="heads")(x, x)
    return {
        "embedding": x,
        "multi_head": y,
        "causal": layers.MultiHeadAttention(2, 8)(x, y, use_causal_mask=True),
        "attention": layers.Attention()([x, y]),
        "pooled": layers.GlobalMaxPooling1D()(layers.Embedding(40, 8, name="other")(inputs)),
    }


def test_masks_of_padding_reach_every_layer(tokens, tmp_path):
    inputs = keras.Input((STEPS,), dtype="int32", name="tokens")
    outputs = masked(inputs)
    quantized, report, parities = exported(keras.Model(inputs, outputs), tokens, tmp_path)
    check(parities, outputs)
    assert report.ops["GATHER"] == 2
    # What is masked has no weight. The plain model is right where Keras' own layers were.
    found = quantized.predict(tokens[:8], verbose=0)
    plain = tfc.strip(quantized).predict(tokens[:8], verbose=0)
    for name in ("multi_head", "causal", "attention"):
        error = np.abs(found[name] - plain[name])[tokens[:8] != 0]
        assert error.max() < 0.05 * np.abs(plain[name]).max()


class Positions(layers.Layer):
    """Adds a trained vector for each position, and hands masks on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, shape):
        self.vectors = self.add_weight(name="vectors", shape=shape[1:], initializer="normal")

    def call(self, x):
        return x + self.vectors


class Pooled(layers.Layer):
    """A layer inside reads the mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.pooling = layers.GlobalAveragePooling1D()

    def call(self, x):
        return self.pooling(x)


def test_masks_pass_layers_of_the_users_own_and_norms(tokens, tmp_path):
    inputs = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = Positions()(layers.Embedding(40, WIDTH, mask_zero=True)(inputs))
    y = layers.LayerNormalization()(x)
    outputs = {
        "heads": layers.MultiHeadAttention(2, 8)(y, y),
        "unit": layers.UnitNormalization()(x),
    }
    model = keras.Model(inputs, outputs)
    quantized, report, parities = exported(model, tokens, tmp_path)
    check(parities, outputs)
    assert not report.float_tensors
    # What is masked has no weight, as in the float model.
    expected = model.predict(tokens[:32], verbose=0)["heads"][tokens[:32] != 0]
    found = quantized.predict(tokens[:32], verbose=0)["heads"][tokens[:32] != 0]
    assert np.abs(found - expected).mean() < 0.06 * np.abs(expected).max()
    inner = tfc.plan(keras.Model(inputs, Pooled(name="pooled")(x)))
    assert "a mask, which its layer" in inner.float_layers["pooled"]


def test_a_token_nobody_looked_up_keeps_its_embedding(tokens):
    model = keras.Sequential(
        [keras.Input((STEPS,), dtype="int32"), layers.Embedding(50, 4), layers.Flatten()]
    )
    table = model.layers[0].embeddings
    table.assign(np.where(np.arange(50)[:, None] == 45, 3.0, table))
    quantized = tfc.quantize(model, calibration_data=tokens[:32])
    rare = np.full((1, STEPS), 45, np.int32)
    assert np.allclose(quantized.predict(rare, verbose=0), 3.0, atol=0.02)


def block(x, heads=2):
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(heads, WIDTH // heads, dropout=0.1)(y, y)
    x = layers.Add()([x, y])
    y = layers.Dense(2 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(WIDTH)(layers.Dropout(0.1)(y))])


def encoder(tokens):
    inputs = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = layers.Embedding(40, WIDTH, mask_zero=True)(inputs)
    positions = ops.cumsum(ops.ones_like(inputs), axis=1) - 1
    x = block(x + layers.Embedding(STEPS, WIDTH)(positions))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x[:, 0])), tokens


def vit(tokens):
    images = np.random.default_rng(0).uniform(0, 1, (200, 8, 8, 3)).astype(np.float32)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(WIDTH, 2, 2)(inputs)
    x = block(layers.Reshape((16, WIDTH))(x))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x[:, 0])), images


@pytest.mark.parametrize("make", [encoder, vit], ids=lambda make: make.__name__)
@pytest.mark.filterwarnings("ignore:.*stay in float:UserWarning")
def test_transformers_train_a_step_and_are_exported(make, tokens, tmp_path):
    model, samples = make(tokens)
    quantized = tfc.quantize(model, calibration_data=samples[:64])
    assert any(isinstance(la, layers.Dropout) and la.rate for la in quantized.layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized.compile("sgd", loss, run_eagerly=True)
    before = [v.numpy() for v in quantized.trainable_variables]
    labels = np.arange(32) % 4
    quantized.fit(samples[:32], labels, batch_size=32, verbose=0)
    moved = [np.any(v.numpy() != b) for v, b in zip(
        quantized.trainable_variables, before, strict=True)]  # fmt: skip
    # The bias of keys moves all scores of a query alike.
    names = [v.path for v, m in zip(quantized.trainable_variables, moved, strict=True) if not m]
    assert all("key" in name for name in names)
    report = tfc.export_tflite(
        quantized, tmp_path / "m.tflite", verify_data=samples, allow_float=True
    )
    assert report.agreement >= 0.97
    # Two of attention, and the squares of two norms.
    assert report.ops["BATCH_MATMUL"] == 4
