"""vLLM in the server's process: start it, run requests on it, and turn its tokens into text."""
