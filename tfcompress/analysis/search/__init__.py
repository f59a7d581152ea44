"""The search for the smallest model, and what goes back to float where it lost too much."""
