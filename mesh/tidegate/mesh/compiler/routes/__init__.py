"""VirtualServices as Envoy's routes, virtual hosts and scopes."""
