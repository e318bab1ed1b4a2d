"""Reads requests: from protobuf messages to checked values."""
