"""Commands that call the model servers."""
