"""Hosts as Envoy's clusters and endpoints."""
