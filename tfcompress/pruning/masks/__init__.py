"""Masks: the patterns of zeros, how scores become masks, and the constraints that hold them."""
