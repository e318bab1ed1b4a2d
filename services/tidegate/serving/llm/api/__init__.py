"""The gRPC API of the LLM server: the RPCs of ``LlmService``, their time limits and responses."""
