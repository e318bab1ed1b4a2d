"""The gRPC services, and how their requests are read and their responses are written."""
