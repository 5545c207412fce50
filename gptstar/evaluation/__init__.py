"""Trained models -> numbers."""
