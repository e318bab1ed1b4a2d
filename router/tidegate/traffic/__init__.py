"""How rollouts change traffic: the `TrafficRouter` interface and its implementations."""
