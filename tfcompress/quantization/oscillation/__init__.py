"""Weights that are held at a code in training, and weights that swing between two codes."""
