"""Training on many processes: strategies, shared weights, sequence parallelism, activation checkpointing."""
