"""The gateway: OpenAI's API, images over REST and the Open Inference Protocol, in front of gRPC.

The gateway keeps no state. It reads a request, calls the server that has the model over gRPC, and
writes the answer in the form that the client expects:

    clients ── HTTP, server-sent events ──> gateway ── gRPC ──> Envoy ──> servers

`tidegate.gateway.app` puts the parts together, and ``python -m tidegate.gateway`` runs them.
"""
