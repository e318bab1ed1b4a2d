"""The gRPC services: reading requests, running them and writing responses."""
