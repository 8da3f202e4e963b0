"""A codec and a text encoder without weights, for the demo, tests and small machines."""
