"""Training: the LightningModule, optimizers, EMA, checkpoints and the callbacks around them. Start at `module.py`."""
