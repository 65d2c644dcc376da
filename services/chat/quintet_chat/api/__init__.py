"""The slice of the OpenAI API that chat models answer."""
