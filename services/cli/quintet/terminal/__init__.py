"""What a person sees: progress, tables, lines. Knows nothing of processes."""
