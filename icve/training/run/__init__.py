"""From a configuration to a run: the command, curricula, stages, launchers."""
