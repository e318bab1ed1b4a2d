"""The parts of every server that need no gRPC: settings, logs, traces, metrics, TLS and process."""
