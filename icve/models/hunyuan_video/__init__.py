"""HunyuanVideo: the in-context transformer, its codec and text encoders, and the layouts of their checkpoints."""
