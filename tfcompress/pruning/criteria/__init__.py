"""Criteria: what a weight is worth, and the statistics that they need."""
