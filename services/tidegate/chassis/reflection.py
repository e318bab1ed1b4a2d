"""gRPC reflection in both of its versions, ``v1`` and ``v1alpha``.

`grpcio-reflection` has only ``v1alpha``. The messages of the two are the same on the wire, so its
servicer answers both. Newer clients ask for ``v1`` first, and some for nothing else; those want to
be told of ``v1`` itself too, so its description is made of the older one's by renaming.
"""

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

__all__ = ["REFLECTION_SERVICES", "add_reflection"]

_OLD: Final = "grpc.reflection.v1alpha"
_NEW: Final = "grpc.reflection.v1"
_METHOD: Final = "ServerReflectionInfo"
_V1: Final = f"{_NEW}.ServerReflection"

REFLECTION_SERVICES: Final = (_V1, reflection.SERVICE_NAME)
"""Full names of the services."""


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Adds reflection.

    Args:
        server: Not started yet.
        services: Full names of the services that it tells of, but for its own.
    """
    _describe_v1()
    names = (*services, *REFLECTION_SERVICES)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_V1, {_METHOD: handler}),)
    )


def _describe_v1() -> None:
    """Makes the service known as generated code would, unless somebody has."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(_V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        _rename(file)
        pool.AddSerializedFile(file.SerializeToString())


def _rename(file: descriptor_pb2.FileDescriptorProto) -> None:
    file.name = file.name.replace("v1alpha", "v1")
    file.package = _NEW
    for message in file.message_type:
        for field in message.field:
            # Numbers and texts have no name of their type; to set it empty would not be nothing.
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_OLD}.", f".{_NEW}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{_OLD}.", f".{_NEW}.")
            method.output_type = method.output_type.replace(f".{_OLD}.", f".{_NEW}.")
