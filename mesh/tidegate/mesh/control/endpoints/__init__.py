"""Endpoints: their health and state, their cluster load assignments, and what runs at each."""
