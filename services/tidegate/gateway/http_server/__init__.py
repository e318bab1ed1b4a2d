"""The HTTP server below the gateway's application: connections, their limits, TLS and the drain."""
