"""Kubernetes as a client sees it: calls, watches, caches, queues, leases and events.

This package knows nothing of rollouts and meshes but the names of their resources.
"""
