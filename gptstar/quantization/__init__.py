"""Weights in 8 and 4 bits: a model that takes a quarter of the memory, or less, and is read that much sooner."""
