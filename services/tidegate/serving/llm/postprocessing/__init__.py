"""Reads answers: separates a model's reasoning and its calls of tools from its text."""
