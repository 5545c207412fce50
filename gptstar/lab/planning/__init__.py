"""What a run would take: memory, time, money."""
