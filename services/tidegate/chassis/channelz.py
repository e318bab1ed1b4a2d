"""Channelz: what gRPC's core knows of its servers, channels and sockets.

The servicer of `grpcio-channelz` is not used: the core tells in JSON, and a core that is newer than
that package's proto tells fields it does not know, at which it answers INTERNAL to everything that
shows a channel. Here such fields are left out.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from tidegate.chassis.calls import ServicerContext
from tidegate.chassis.errors import NotFound

__all__ = ["add_channelz"]

_Response = TypeVar("_Response", bound=Message)


def add_channelz(server: grpc.aio.Server) -> None:
    """Adds ``grpc.channelz.v1.Channelz`` to a server."""
    channelz_pb2_grpc.add_ChannelzServicer_to_server(_ChannelzServicer(), server)


def _asking(
    ask: Callable[..., bytes], response: type[_Response], *fields: str
) -> Callable[[object, Message, ServicerContext], Awaitable[_Response]]:
    async def handle(self: object, request: Message, context: ServicerContext) -> _Response:
        del self, context
        try:
            told = ask(*(getattr(request, field) for field in fields))
        except ValueError as error:
            raise NotFound(f"no such {fields[0].removesuffix('_id')}") from error
        return json_format.Parse(told, response(), ignore_unknown_fields=True)

    return handle


class _ChannelzServicer:
    GetTopChannels = _asking(
        cygrpc.channelz_get_top_channels, channelz_pb2.GetTopChannelsResponse, "start_channel_id"
    )
    GetServers = _asking(
        cygrpc.channelz_get_servers, channelz_pb2.GetServersResponse, "start_server_id"
    )
    GetServer = _asking(cygrpc.channelz_get_server, channelz_pb2.GetServerResponse, "server_id")
    GetServerSockets = _asking(
        cygrpc.channelz_get_server_sockets,
        channelz_pb2.GetServerSocketsResponse,
        *("server_id", "start_socket_id", "max_results"),
    )
    GetChannel = _asking(cygrpc.channelz_get_channel, channelz_pb2.GetChannelResponse, "channel_id")
    GetSubchannel = _asking(
        cygrpc.channelz_get_subchannel, channelz_pb2.GetSubchannelResponse, "subchannel_id"
    )
    GetSocket = _asking(cygrpc.channelz_get_socket, channelz_pb2.GetSocketResponse, "socket_id")
