"""What every command needs of the machine it runs on: whole files, locks, process pools, precision, threads."""
