"""The routes of the embed service. Nothing here imports torch."""
