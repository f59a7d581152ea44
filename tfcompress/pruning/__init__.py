"""Sparsity during an ordinary `fit`: criteria, patterns, schedules, masks, regularization."""
