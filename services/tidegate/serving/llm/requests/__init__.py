"""Reads requests: pure functions from protobuf messages to checked values."""
