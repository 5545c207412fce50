"""From an idea to a verdict with error bars: studies of several variants and seeds, plans, searches, scaling laws."""
