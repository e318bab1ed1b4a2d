"""Edits Istio objects: shifts and their shares, applied to a YAML text or to a manifest."""
