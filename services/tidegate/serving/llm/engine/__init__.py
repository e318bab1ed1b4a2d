"""vLLM in the server process: start it, run requests on it, and turn its tokens into text."""
