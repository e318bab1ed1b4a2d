"""Rollout objects as people write them: the model, its quantities, and how files are read."""

from tidegate.rollout.spec.model import Rollout, RolloutSpec

__all__ = ["Rollout", "RolloutSpec"]
