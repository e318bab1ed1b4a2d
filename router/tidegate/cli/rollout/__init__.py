"""``tidegate rollout``: apply rollouts, watch them, command them, and try them before."""
