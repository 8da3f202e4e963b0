"""What a run will need and see, before it starts: FLOPs, memory and time of a plan, and the pairs that data gives."""
