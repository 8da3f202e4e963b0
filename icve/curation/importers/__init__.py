"""Public sets of paired edits, as they come, brought into this project's manifest."""
