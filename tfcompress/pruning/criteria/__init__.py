"""Criteria: scores of weights and channels, and the gradients and activations that they need."""

from tfcompress.pruning.criteria import functions  # noqa: F401  (registers the built-in criteria)
