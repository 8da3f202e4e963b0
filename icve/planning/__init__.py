"""What training will need, before any weight is loaded: FLOPs, memory per GPU, communication and time."""
