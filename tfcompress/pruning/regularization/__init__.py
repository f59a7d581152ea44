"""Penalties on the variables of a built model, and the callback that schedules them."""
