"""Measures speed and memory against other ways of doing the same work: `make bench`, or python -m benchmarks."""
