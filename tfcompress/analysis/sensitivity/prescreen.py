"""A pre-screen of many candidates in a few backward passes: ½ Σ F Δw²."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.analysis.measuring.measures import Kind
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.analysis.options.changes import Candidate, Changes
from tfcompress.model import inference

_SAMPLES, _BATCH = 128, 8


def fisher_estimates(
    changes: Changes, candidates: Sequence[Candidate], held: Samples, kinds: Sequence[Kind]
) -> dict[Candidate, float]:
    """Estimates what candidates cost by the second-order term of the KL divergence.

    KL(p_w ‖ p_{w+Δ}) ≈ ½ Σ F_ii Δ_i², where F is the diagonal of the Fisher information: the mean
    square of the gradient of −log p(ŷ), ŷ drawn from the model's own outputs, here over batches of
    8 whose gradients are of sums (Theis et al. 2018, https://arxiv.org/abs/1801.05787).

    Args:
        changes: What candidates do to the weights.
        candidates: The candidates.
        held: Samples.
        kinds: What each output holds.
    """
    changed = {c: changes.values(c) for c in candidates}
    variables = {key: v for values in changed.values() for key, (v, _) in values.items()}
    squares = {key: np.zeros(v.shape, np.float64) for key, v in variables.items()}
    count = min(len(held), _SAMPLES)
    rng = np.random.default_rng(0)
    for start in range(0, count, _BATCH):
        part = tree.map_structure(lambda a, s=start: a[s : s + _BATCH], held.inputs)
        with tf.GradientTape() as tape:
            outputs = inference.run(changes.graph, part)
            loss = sum(_loss(k, o, rng) for k, o in zip(kinds, outputs, strict=True))
        sources = [v.value for v in variables.values()]
        gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
        for key, gradient in zip(variables, gradients, strict=True):
            squares[key] += np.square(np.asarray(tf.convert_to_tensor(gradient), np.float64))
    return {
        c: float(
            sum(
                0.5 * np.sum(squares[key] / count * np.square(new - np.asarray(variable)))
                for key, (variable, new) in values.items()
            )
        )
        for c, values in changed.items()
    }


def _loss(kind: Kind, output: tf.Tensor, rng: np.random.Generator) -> tf.Tensor:
    """−log p of labels drawn from the model's outputs, summed over samples."""
    if kind == "values":
        # A Gaussian whose variance is that of the outputs.
        deviation = tf.math.reduce_std(output) + 1e-6
        drawn = tf.stop_gradient(output) + deviation * rng.normal(size=output.shape)
        return tf.reduce_sum(tf.square((drawn - output) / deviation)) / 2
    if kind in ("probability", "logit"):
        other = 1 - output if kind == "probability" else tf.zeros_like(output)
        output = tf.stack([output, other], -1)
    log_p = output if kind in ("logits", "logit") else tf.math.log(output + 1e-9)
    log_p = tf.nn.log_softmax(log_p)
    noise = rng.gumbel(size=output.shape).astype(np.float32)
    drawn = tf.argmax(tf.stop_gradient(log_p) + noise, -1)
    return -tf.reduce_sum(tf.gather(log_p, drawn, batch_dims=drawn.shape.rank))
