"""OpenAI's responses, without state: each request has the whole conversation as its input."""
