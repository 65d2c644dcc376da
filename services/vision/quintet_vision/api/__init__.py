"""The images slice of the OpenAI API. Nothing here imports torch."""
