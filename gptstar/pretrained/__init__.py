"""Weights on disk <-> models: our own checkpoint folders, and other people's."""
