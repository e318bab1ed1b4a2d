"""Edits Istio objects: what a shift changes, and how a text or a manifest takes the change."""
