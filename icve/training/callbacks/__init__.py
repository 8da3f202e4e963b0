"""What goes on beside the training steps: checkpoints, average, figures, previews, watching for stalls."""
