"""Benchmarks: this package's speed against peers and against what arithmetic costs."""
