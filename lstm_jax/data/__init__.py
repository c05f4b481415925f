"""Data: sources, vocabularies, and what a batch is cut from."""
