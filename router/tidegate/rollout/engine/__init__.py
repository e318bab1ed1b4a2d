"""The rollout engine: a pure step from a status and what was seen to the next status."""
