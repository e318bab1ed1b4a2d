"""Reads Istio objects: files, YAML documents, messages, scalars, each in its own module."""
