"""Measures the suite against other ways of doing the same work: see run.py, and `make bench`."""
