"""Measuring editors: the held-out synthetic benchmark and the report page."""
