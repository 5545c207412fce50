"""Runs from wherever they are, and which of them can be compared."""
