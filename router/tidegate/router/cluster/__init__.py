"""The router on a cluster: follows `Rollout` objects, elects a leader, and serves access logs."""
