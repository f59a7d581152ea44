"""Methods: how masks change over training."""
