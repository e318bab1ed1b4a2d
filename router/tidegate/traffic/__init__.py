"""How rollouts change traffic: the `TrafficRouter` interface, and how it reaches the mesh."""
