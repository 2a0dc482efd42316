"""From binarized text to batches: Megatron's .bin/.idx files, samples, blends, the loader.

Knows nothing of processes or devices: a rank and a size reach it as two integers.
"""
