"""The trace store of the controller, which replaces a collector and a Jaeger on a laptop.

Envoy, the servers and the clients send spans over OTLP/gRPC to `receiver`. `intake` validates each
span, `database` keeps the newest traces in SQLite, and `store` owns the thread that SQLite runs on.
`jaeger_api` serves the traces over Jaeger's query HTTP API for Jaeger's UI, Grafana and
``tidegate trace``. If a collector is configured, spans go there and none come here.

    store = TraceStore(Path(".tidegate/traces.sqlite"))
    OtlpTraceServicer(store).register(server)
    async with store, jaeger_api(store): ...

This package imports nothing, because the command line needs neither gRPC nor aiohttp.
"""
