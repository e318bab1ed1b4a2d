"""What every program stands on: settings, logs, traces, metrics, TLS. No gRPC in it."""
