"""The parts of `benchmarks.search`: the nets, and what is measured of each."""
