"""Traces on a laptop: what a collector and a Jaeger are elsewhere, inside the controller.

Envoy, the servers and the clients send spans over OTLP/gRPC to `receiver`; `intake` looks at each
once, `database` keeps the last traces in SQLite, and `store` owns the thread that SQLite runs on.
`jaeger_api` serves them over Jaeger's query HTTP API, so that Jaeger's own UI, Grafana and
``tidegate trace`` read them. Where a collector is configured, spans go there and none come here.

    store = TraceStore(Path(".tidegate/traces.sqlite"))
    OtlpTraceServicer(store).register(server)
    async with store, jaeger_api(store): ...

The command line needs neither gRPC nor aiohttp, so nothing is imported here.
"""
