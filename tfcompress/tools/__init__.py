"""The command-line tools; the scripts in the top-level `tools/` and the console commands call them."""
