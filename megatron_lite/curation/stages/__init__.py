"""What the stages of the pipeline do to a shard, as works of the engine."""
