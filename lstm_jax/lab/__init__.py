"""The cell lab: what `lab.py` finds out about a cell."""
