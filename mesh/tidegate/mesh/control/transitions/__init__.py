"""Transitions: how a change reaches every proxy, stage by stage, without losing a request."""
