"""Servicers that omit methods, and handlers that would block the event loop."""

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from tidegate.chassis.in_flight import InFlightCalls
from tidegate.chassis.method_table import MethodTable
from tidegate.chassis.server_builder import use_method_table
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

SERVICE = "tidegate.vision.v1.VisionService"


class Half(vision_pb2_grpc.VisionServiceServicer):
    """Has one method of its service."""

    async def ListModels(self, request, context):  # noqa: N802 - the proto's name
        return vision_pb2.ListModelsResponse()


async def test_methods_that_a_servicer_omits_are_unimplemented_and_the_others_served():
    server = grpc.aio.server()
    use_method_table(MethodTable(frozenset({SERVICE}), InFlightCalls()), server)
    vision_pb2_grpc.add_VisionServiceServicer_to_server(Half(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            await stub.ListModels(vision_pb2.ListModelsRequest())
            for call in (
                stub.Classify(vision_pb2.ClassifyRequest()),
                stub.GetModel(vision_pb2.GetModelRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await call
                assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert "this server has no method" in failure.value.details()
    finally:
        await server.stop(None)


def test_handler_that_is_not_async_is_rejected_at_registration():
    def echo(request, context):
        return request

    table = MethodTable(frozenset(), InFlightCalls())
    handler = grpc.unary_unary_rpc_method_handler(echo, Empty.FromString, Empty.SerializeToString)
    with pytest.raises(TypeError, match="Echo must be an async function or"):
        table.add_service("a.Service", {"Echo": handler})
