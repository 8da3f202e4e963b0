"""From raw videos to training pairs."""
