"""OTLP collectors over gRPC and over HTTP that keep the spans they receive."""

import threading
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Received:
    """The received spans, and the attributes of their resources."""

    def __init__(self):
        self.spans = []
        self.resources = []
        self.paths = []

    @property
    def services(self):
        """The names of the services that sent spans."""
        return {each["service.name"] for each in self.resources}

    def add(self, request):
        for each in request.resource_spans:
            self.resources.append(
                {it.key: it.value.string_value for it in each.resource.attributes}
            )
            for scope in each.scope_spans:
                self.spans.extend(scope.spans)


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, received):
        self._received = received

    async def Export(self, request, context):
        self._received.add(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def grpc_collector():
    """Runs a collector over gRPC; yields the received spans, and its address."""
    received = Received()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Servicer(received), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield received, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextmanager
def http_collector():
    """Runs a collector over HTTP; yields the received spans, and its address."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.paths.append(self.path)
            received.add(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
