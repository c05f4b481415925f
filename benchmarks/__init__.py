"""Measurements against other libraries, run by hand."""
