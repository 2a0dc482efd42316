"""AdamW, the learning-rate schedule and the global gradient norm."""
