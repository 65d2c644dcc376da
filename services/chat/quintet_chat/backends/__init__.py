"""Where models come from: one module per family or source."""
