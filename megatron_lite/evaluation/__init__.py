"""Downstream benchmarks: what they ask, how a model answers on any layout, and the table of what came out."""
