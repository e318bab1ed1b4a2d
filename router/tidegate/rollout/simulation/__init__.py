"""Simulation: the real engine on synthetic traffic, with time that is passed in."""
