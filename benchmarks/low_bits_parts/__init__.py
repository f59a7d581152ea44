"""The parts of `benchmarks.low_bits`: each has rows by name and a function that measures one."""
