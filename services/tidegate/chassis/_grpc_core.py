"""How gRPC's core reads sockets. It must be told before ``grpc`` is imported, so this comes first.

With its event engine, gRPC's core reads on threads of its own and hands each call on before the
thread that polls for calls sees it, which a client that makes one call after another waits for.
Without it the polling thread reads, too. A program that has imported ``grpc`` before the chassis
keeps the event engine, and is right all the same.

Operators who set ``GRPC_EXPERIMENTS`` themselves keep what they set; an empty value is gRPC's own
choice.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
