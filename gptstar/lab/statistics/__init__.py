"""Intervals, tests, power, and where a curve comes down to a target."""
