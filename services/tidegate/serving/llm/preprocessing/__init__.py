"""Prepares requests for the engine: token ids of prompts, and constraints that compile."""
