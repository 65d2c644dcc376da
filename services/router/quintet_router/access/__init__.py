"""Who may ask for what, how often, and what became of it."""
