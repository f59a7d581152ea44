"""Ranges and corrections from data, before any training."""
