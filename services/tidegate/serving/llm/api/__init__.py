"""The RPCs of ``LlmService``: from the call to the last message of its response."""
