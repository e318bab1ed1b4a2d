"""Rollouts, their status and their history as messages of `tidegate.rollout.v1`, and back."""

from tidegate.rollout.messages.spec_messages import rollout_of, spec_message
from tidegate.rollout.messages.status_messages import (
    assessment_message,
    event_message,
    rollout_message,
    sample_message,
    split_message,
    status_message,
)

__all__ = [
    "assessment_message",
    "event_message",
    "rollout_message",
    "rollout_of",
    "sample_message",
    "spec_message",
    "split_message",
    "status_message",
]
