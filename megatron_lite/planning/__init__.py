"""The training step on paper, for any configuration and any world."""
