"""The `Rollout` object of Kubernetes: its definition, its status, and commands in annotations."""
