"""The training loop and what it leaves behind: metrics, throughput, the report."""
