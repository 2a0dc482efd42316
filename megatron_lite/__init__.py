"""From raw text to an aligned 65B language model: one system, proved on a laptop, run on a cluster."""

__version__ = "0.1.0"
