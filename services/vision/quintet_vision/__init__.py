"""Image generation and editing."""
