"""Benchmarks: one script a figure, each with its peers in the same run. See README.md."""
