"""How rollouts change traffic on Kubernetes: they write Istio's objects at the API server.

`ClusterTraffic` gives each rollout its `TrafficRouter`. The pure modules decide: `host_objects`
holds what is there, `reading` tells the split of it, `capacity` and `gates` say whether endpoints
carry a split, `guarded_patch` and `owned_objects` say what to write. `writing` writes it.
"""
