"""Turns off gRPC's event engine for sockets. It must run before ``import grpc``, so it comes first.

With its event engine, gRPC's core reads sockets on threads of its own, and hands each call over
before the thread that polls for calls sees it. A client that makes one call after another waits for
that, and every message of a stream costs more CPU time. Without the event engine the polling thread
reads the sockets itself. A program that imports ``grpc`` before this module keeps the event engine,
and still works.

Operators who set ``GRPC_EXPERIMENTS`` themselves keep their value; an empty one is gRPC's default.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
