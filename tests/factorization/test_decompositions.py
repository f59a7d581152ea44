"""The maths of low rank against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.factorization.decompositions import (
    Metric,
    Spectrum,
    Tucker2,
    spatial_kernels,
    spatial_matrix,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(2, 12), st.integers(2, 12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_error_is_what_the_discarded_singular_values_say(seed, inputs, outputs, weighted):
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(inputs, outputs))
    x = random.normal(size=(300, inputs)) * np.exp(random.normal(size=inputs))
    metric = Metric.from_covariance(x.T @ x / 300) if weighted else None
    spectrum = Spectrum.of(matrix, metric)
    root = metric.root if weighted else np.eye(inputs)
    total = np.linalg.norm(root @ matrix) ** 2
    for rank in range(1, min(inputs, outputs) + 1):
        a, b = spectrum.cut(rank)
        assert a.shape == (inputs, rank)
        error = np.linalg.norm(root @ (matrix - a @ b)) ** 2
        said = np.sum(spectrum.values[rank:] ** 2)
        assert error == pytest.approx(said, rel=1e-5, abs=1e-12 * total)
        assert spectrum.errors()[rank] == pytest.approx(said / total, rel=1e-5, abs=1e-12)
    if weighted:
        # The weighted norm is the error of the outputs on the data.
        outside = np.linalg.norm(x @ (matrix - a @ b)) ** 2 / 300
        assert outside == pytest.approx(error, abs=1e-9 * total)
        a, b = spectrum.cut(1)
        plain = Spectrum.of(matrix).cut(1)
        errors = [np.linalg.norm(x @ (matrix - p @ q)) for p, q in ((a, b), plain)]
        assert errors[0] <= errors[1] * (1 + 1e-6)


def test_a_metric_has_no_use_for_nonsense_and_survives_dead_inputs():
    metric = Metric.from_covariance(np.diag([4.0, 0.0]))
    np.testing.assert_allclose(metric.root @ metric.inverse, np.eye(2), atol=1e-9)
    for covariance in (np.zeros((3, 3)), np.ones((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="square"):
            Metric.from_covariance(covariance)


@given(st.floats(0.05, 1.0), seeds)
@settings(max_examples=40, deadline=None)
def test_rank_for_is_the_smallest_that_keeps_the_energy(energy, seed):
    spectrum = Spectrum.of(np.random.default_rng(seed).normal(size=(7, 9)))
    rank = spectrum.rank_for(energy)
    squares = spectrum.values**2 / np.sum(spectrum.values**2)
    assert squares[:rank].sum() >= energy - 1e-9
    assert rank == 1 or squares[: rank - 1].sum() < energy + 1e-9


def test_spatial_factors_multiply_back():
    kernel = np.random.default_rng(0).normal(size=(3, 5, 4, 6))
    a, b = Spectrum.of(spatial_matrix(kernel)).cut(12)
    first, second = spatial_kernels(a, b, kernel.shape)
    assert first.shape == (3, 1, 4, 12)
    assert second.shape == (1, 5, 12, 6)
    again = np.einsum("hxir,ywro->hwio", first, second)
    np.testing.assert_allclose(again, kernel, atol=1e-10)


@given(seeds, st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_tucker_error_and_bound(seed, first, second):
    kernel = np.random.default_rng(seed).normal(size=(3, 3, 4, 6))
    tucker = Tucker2.of(kernel)
    u, core, v = tucker.cut(first, second)
    again = np.einsum("xyia,hwab,xybo->hwio", u, core, v)
    total = np.sum(kernel**2)
    error = np.sum((kernel - again) ** 2)
    assert tucker.error(first, second) == pytest.approx(error / total, rel=1e-5, abs=1e-10)
    bound = tucker.input_energies[first:].sum() + tucker.output_energies[second:].sum()
    assert error <= bound * (1 + 1e-9) + 1e-9
