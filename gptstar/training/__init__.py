"""The loop and what it stands on: optimizers, schedules, precision, checkpoints, metrics."""
