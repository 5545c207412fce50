"""Corpora -> documents -> token shards -> batches, in an order that is a pure function of (seed, step)."""
