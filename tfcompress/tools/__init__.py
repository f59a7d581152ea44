"""The code of the command-line tools; scripts in `tools/` and console commands call it."""
