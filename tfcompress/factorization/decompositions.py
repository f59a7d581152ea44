"""The maths of low rank, as pure functions on NumPy arrays in float64."""

from __future__ import annotations

import dataclasses

import numpy as np

# Directions in which the inputs hardly vary get this share of the largest variance, so that inputs
# unlike those of the data are still approximated.
_FLOOR = 1e-6

# A singular value with no more than this share of the largest is rounding of a float32 kernel.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Metric:
    """The norm in which a matrix W of shape (inputs, outputs) is approximated: ‖root · W‖_F.

    With root = C^½, C = E[x xᵀ], it is the mean squared error of the layer's output.

    Attributes:
        root: C^½, symmetric, (inputs, inputs).
        inverse: C^(−½).
    """

    root: np.ndarray
    inverse: np.ndarray

    @classmethod
    def from_covariance(cls, covariance: np.ndarray) -> Metric:
        """From E[x xᵀ], (inputs, inputs); eigenvalues below 1e-6 of the largest are raised to it.

        Raises:
            ValueError: It is not a finite square matrix, or all zeros.
        """
        covariance = np.asarray(covariance, np.float64)
        square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
        if not square or not np.all(np.isfinite(covariance)) or not np.any(covariance):
            raise ValueError(
                "Expected a finite square matrix that is not all zeros. Received: shape "
                f"{covariance.shape}."
            )
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        values = np.sqrt(np.maximum(values, _FLOOR * values.max()))
        return cls((vectors * values) @ vectors.T, (vectors / values) @ vectors.T)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a matrix, to be cut at any rank.

    Attributes:
        left: (inputs, k), in the metric's coordinates undone.
        values: Singular values, descending, (k,).
        right: (k, outputs).
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray, metric: Metric | None = None) -> Spectrum:
        """Decomposes (inputs, outputs), by a metric if there is one."""
        matrix = np.asarray(matrix, np.float64)
        seen = matrix if metric is None else metric.root @ matrix
        left, values, right = np.linalg.svd(seen, full_matrices=False)
        return cls(left if metric is None else metric.inverse @ left, values, right)

    def cut(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """`(A, B)` of shapes (inputs, rank) and (rank, outputs), A·B the best of that rank.

        Eckart & Young 1936: the squared error is the sum of the discarded σ². Both factors get √σ,
        so that gradients on either side are of like size. Where σ is no more than rounding of a
        float32 kernel, A gets √σ₁ and B the rest: were both near zero, neither would ever train.
        """
        values = self.values[:rank]
        largest = values[0] if np.any(values) else 1.0
        first = np.sqrt(np.where(values > _ROUNDING * largest, values, largest))
        return self.left[:, :rank] * first, (values / first)[:, None] * self.right[:rank]

    def errors(self) -> np.ndarray:
        """Relative squared error Σ_{i>r} σᵢ² / Σ σᵢ² at rank r = 0 … k, shape (k + 1,)."""
        squares = self.values**2
        left_out = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        return left_out / max(squares.sum(), np.finfo(np.float64).tiny)

    def rank_for(self, energy: float) -> int:
        """The smallest rank ≥ 1 that keeps at least this share of Σ σ²."""
        # The last sums are equal up to rounding.
        kept = 1.0 - self.errors()
        return max(1, int(np.argmax(kept >= energy - 1e-12)))


def spatial_matrix(kernel: np.ndarray) -> np.ndarray:
    """A kernel (h, w, in, out) as (h · in, w · out): rank r is r filters h×1, then 1×w.

    Jaderberg et al. 2014, "Speeding up convolutional neural networks with low rank expansions".
    """
    height, width, inputs, outputs = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)


def spatial_kernels(
    a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The factors of `spatial_matrix` as kernels (h, 1, in, r) and (1, w, r, out)."""
    height, width, inputs, outputs = shape
    rank = a.shape[1]
    return a.reshape(height, 1, inputs, rank), b.reshape(rank, width, outputs)[None].transpose(
        0, 2, 1, 3
    )


@dataclasses.dataclass(frozen=True)
class Tucker2:
    """A kernel (h, w, in, out) in the bases of its two channel axes.

    Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power
    mobile applications": W ≈ core ×_in U ×_out V, the bases being the singular vectors of the two
    unfoldings (HOSVD, De Lathauwer et al. 2000).

    Attributes:
        inputs: Basis U of the input channels, (in, in).
        outputs: Basis V of the output channels, (out, out).
        core: The kernel in these bases, (h, w, in, out).
        input_energies: σ² of the unfolding by input channels, descending.
        output_energies: σ² of the unfolding by output channels, descending.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    core: np.ndarray
    input_energies: np.ndarray
    output_energies: np.ndarray

    @classmethod
    def of(cls, kernel: np.ndarray) -> Tucker2:
        kernel = np.asarray(kernel, np.float64)
        _, _, inputs, outputs = kernel.shape
        by_input = kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
        by_output = kernel.reshape(-1, outputs).T
        u, input_energies = _basis(by_input)
        v, output_energies = _basis(by_output)
        core = np.einsum("hwio,ia,ob->hwab", kernel, u, v, optimize=True)
        return cls(u, v, core, input_energies, output_energies)

    def cut(self, input_rank: int, output_rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kernels (1, 1, in, r₁), (h, w, r₁, r₂) and (1, 1, r₂, out)."""
        first = self.inputs[:, :input_rank][None, None]
        last = self.outputs[:, :output_rank].T[None, None]
        return first, self.core[:, :, :input_rank, :output_rank], last

    def error(self, input_rank: int, output_rank: int) -> float:
        """Relative squared error, 1 − ‖core cut‖² / ‖core‖²: the bases are orthonormal."""
        total = np.sum(self.core**2)
        kept = np.sum(self.core[:, :, :input_rank, :output_rank] ** 2)
        return float(max(0.0, 1.0 - kept / max(total, np.finfo(np.float64).tiny)))

    def ranks_for(self, energy: float) -> tuple[int, int]:
        """The smallest ranks of which each keeps this share of its unfolding's energy."""
        return _rank(self.input_energies, energy), _rank(self.output_energies, energy)


def _basis(unfolding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and σ² of a wide matrix, by its small Gram matrix."""
    values, vectors = np.linalg.eigh(unfolding @ unfolding.T)
    return vectors[:, ::-1], np.maximum(values[::-1], 0.0)


def _rank(energies: np.ndarray, energy: float) -> int:
    kept = np.cumsum(energies) / max(energies.sum(), np.finfo(np.float64).tiny)
    return int(np.argmax(kept >= min(energy, kept[-1]) - 1e-12)) + 1
