"""Services that show a running server to tools: reflection and channelz.

Reflection is served as ``v1`` and ``v1alpha``. `grpcio-reflection` has only ``v1alpha``; the
messages of the two are the same on the wire, so its servicer answers both. Newer clients ask for
``v1`` first, and some ask for nothing else. They want a description of ``v1`` itself too, so
`add_reflection` makes one from that of ``v1alpha`` by renaming.

Channelz shows the servers, channels and sockets of gRPC's core. The servicer of `grpcio-channelz`
is not used: the core answers in JSON, and a core that is newer than that package's proto sends
fields that the package does not know. It then answers INTERNAL to every request that shows a
channel. `add_channelz` leaves such fields out.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.message import Message
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tidegate.chassis.calls import ServicerContext
from tidegate.chassis.errors import NotFound

__all__ = ["add_channelz", "add_reflection"]

_V1ALPHA: Final = "grpc.reflection.v1alpha"
_V1: Final = "grpc.reflection.v1"
_V1_SERVICE: Final = f"{_V1}.ServerReflection"

_Response = TypeVar("_Response", bound=Message)


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Adds ``grpc.reflection.v1`` and ``v1alpha`` to a server.

    Args:
        server: A server that has not started yet.
        services: Full names of the services that reflection lists besides its own.
    """
    _describe_v1()
    names = (*services, _V1_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_V1_SERVICE, {"ServerReflectionInfo": handler}),)
    )


def add_channelz(server: grpc.aio.Server) -> None:
    """Adds ``grpc.channelz.v1.Channelz`` to a server."""
    channelz_pb2_grpc.add_ChannelzServicer_to_server(_ChannelzServicer(), server)


def _describe_v1() -> None:
    """Adds the description of the service to the default pool, as generated code would."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(_V1_SERVICE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        _rename(file)
        pool.AddSerializedFile(file.SerializeToString())


def _rename(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.name = file.name.replace("v1alpha", "v1")
    file.package = _V1
    for message in file.message_type:
        for field in message.field:
            # Scalar fields have no type name, and an empty one differs from none.
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_V1ALPHA}.", f".{_V1}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{_V1ALPHA}.", f".{_V1}.")


def _core_query(
    query: Callable[..., bytes], response: type[_Response], *fields: str
) -> Callable[[object, Message, ServicerContext], Awaitable[_Response]]:
    """Makes a handler that passes fields of its request to gRPC's core."""

    async def handle(self: object, request: Message, context: ServicerContext) -> _Response:
        del self, context
        try:
            found = query(*(getattr(request, field) for field in fields))
        except ValueError as error:
            raise NotFound(f"no such {fields[0].removesuffix('_id')}") from error
        return json_format.Parse(found, response(), ignore_unknown_fields=True)

    return handle


class _ChannelzServicer:
    GetTopChannels = _core_query(
        cygrpc.channelz_get_top_channels, channelz_pb2.GetTopChannelsResponse, "start_channel_id"
    )
    GetServers = _core_query(
        cygrpc.channelz_get_servers, channelz_pb2.GetServersResponse, "start_server_id"
    )
    GetServer = _core_query(cygrpc.channelz_get_server, channelz_pb2.GetServerResponse, "server_id")
    GetServerSockets = _core_query(
        cygrpc.channelz_get_server_sockets,
        channelz_pb2.GetServerSocketsResponse,
        *("server_id", "start_socket_id", "max_results"),
    )
    GetChannel = _core_query(
        cygrpc.channelz_get_channel, channelz_pb2.GetChannelResponse, "channel_id"
    )
    GetSubchannel = _core_query(
        cygrpc.channelz_get_subchannel, channelz_pb2.GetSubchannelResponse, "subchannel_id"
    )
    GetSocket = _core_query(cygrpc.channelz_get_socket, channelz_pb2.GetSocketResponse, "socket_id")
