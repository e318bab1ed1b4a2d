"""Objects of Kubernetes, of Istio's policies and of operators, as the rules of lint read them.

`shapes` holds what all of them share, and `pods`, `workloads`, `services` and `policies` the kinds.
`manifests` reads them from files, and `view` answers what rules ask of them together: which Pods a
Service selects, or whether Pods have a sidecar. `server_settings` reads what a container sets for a
server of Tidegate.
"""
