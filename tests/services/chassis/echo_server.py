"""A server on the chassis with one method of every kind, for tests of the chassis.

As a program it is a server process; tests in one process use `EchoApplication` with `running`. The
text of a request says what the call does: ``ok``, ``invalid``, ``crash``, ``abort``, ``wait``, ….
"""

import asyncio
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import Field

from tidegate.chassis import (
    ChassisSettings,
    Health,
    LoadReport,
    ResponseWriter,
    code_of_cancellation,
    deadline_of,
    deferred_client_identity,
    report_load,
    run,
    set_trailers,
)
from tidegate.chassis.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from tidegate.chassis.served_models import ServedModel, counted_request
from tidegate.runtime.logging import get_logger
from tidegate.runtime.tracing import traced

SERVICE = "tidegate.test.EchoService"
KINDS = {
    "Echo": (False, False),
    "Repeat": (False, True),
    "Collect": (True, False),
    "Chat": (True, True),
}
ERRORS = {
    "invalid": InvalidArgument(
        [FieldViolation("value", "is wrong"), FieldViolation("other", "is missing")]
    ),
    "verbose": InvalidArgument([FieldViolation("field", "x" * 5000)] * 100),
    "not-found": NotFound("no model x", metadata={"model": "x"}, reason="MODEL_UNKNOWN"),
    "exhausted": ResourceExhausted("the queue is full", retry_after_s=1.25, reason="QUEUE_FULL"),
    "deadline": DeadlineExceeded("expired in the queue"),
    "unavailable": Unavailable("loading", retry_after_s=2),
    "precondition": FailedPrecondition("not built"),
    "unimplemented": Unimplemented("no such thing"),
    "internal": Internal("broken"),
}


def register_descriptor() -> None:
    """Adds the service to reflection, as generated code does."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tidegate/test/echo.proto",
        package="tidegate.test",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="EchoService")
    for name, (client, server) in KINDS.items():
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client,
            server_streaming=server,
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


register_descriptor()


@traced("decode", codec="jpeg")
def decode():
    """A stage that blocks."""


@traced("infer")
async def infer():
    """A stage that awaits."""


class EchoSettings(ChassisSettings):
    """Settings of the echo server."""

    load_s: float = Field(0.0, ge=0, le=60, description="How long loading takes.")
    fail_load: bool = Field(False, description="Fail to load.")


MODELS = {
    version: ServedModel(
        "echo",
        version,
        precision="fp32",
        engine="echo 1",
        methods=[f"/{SERVICE}/{name}" for name in KINDS],
    )
    for version in ("v1", "v2")
}


class Held:
    """An object that a handler keeps alive while it runs."""


class EchoApplication:
    """Answers each call as its text says."""

    service_names = (SERVICE,)

    def __init__(self, settings=None):
        self.settings = settings
        self.go_on = asyncio.Event()  # set it to let ``wait`` calls finish
        self.waiting = asyncio.Semaphore(0)  # one release for each ``wait`` call that began
        self.closed = asyncio.Semaphore(0)  # one release for each ``wait`` call that ended
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.peers = set()
        self.held = []  # a weak reference to what each ``hold`` call held
        self.entered = asyncio.Event()
        self.loaded = asyncio.Event()
        self.engine_dies = asyncio.Event()

    def register(self, server):
        create = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            name: create[kind](
                getattr(self, name.lower()), StringValue.FromString, StringValue.SerializeToString
            )
            for name, kind in KINDS.items()
        }
        server.add_registered_method_handlers(SERVICE, handlers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        self.entered.set()
        if self.settings and self.settings.load_s:
            await asyncio.sleep(self.settings.load_s)
        if self.settings and self.settings.fail_load:
            raise RuntimeError("the weights are missing")
        await self.may_load.wait()
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for model in MODELS.values():
                model.publish()
                stack.callback(model.withdraw)
            engine = group.create_task(self._engine())
            health.set_all(True)
            self.loaded.set()
            yield
            engine.cancel()

    async def _engine(self):
        await self.engine_dies.wait()
        raise RuntimeError("the engine died")

    async def echo(self, request, context):
        await self._do(request.value, context)
        return request

    async def repeat(self, request, context):
        yield request
        await self._do(request.value, context)
        for _ in range(2):
            yield request

    async def collect(self, requests, context):
        values = []
        async for request in requests:
            await self._do(request.value, context)
            values.append(request.value)
        return StringValue(value=",".join(values))

    async def chat(self, requests, context):
        async for request in requests:
            await self._do(request.value, context)
            yield request

    async def _do(self, text, context):
        if text.startswith("trailers "):
            set_trailers(context, {"tidegate-model-version": "v7"})
            text = text.removeprefix("trailers ")
        if text in ERRORS:
            raise ERRORS[text]
        name, _, argument = text.partition(" ")
        if act := getattr(self, f"_do_{name.replace('-', '_')}", None):
            await act(context, argument)

    async def _do_deadline_of(self, context, argument):
        self.deadline_s = deadline_of(context)

    async def _do_identity_of(self, context, argument):
        find = deferred_client_identity(context, "Tidegate-Client")
        # The function may be called in the task of another call.
        self.identity = Context().run(find)

    async def _do_fail_while_first_write(self, context, argument):
        async with asyncio.TaskGroup() as group:
            group.create_task(ResponseWriter(context).write(StringValue(value="half")))
            await asyncio.sleep(0)
            # The write has begun and cannot have ended, because another thread completes it.
            raise ERRORS["not-found"]

    async def _do_write(self, context, count):
        writer = ResponseWriter(context)
        for _ in range(int(count)):
            await writer.write(StringValue(value="written"))

    async def _do_code_of_cancellation(self, context, argument):
        if argument == "early":
            # A subtask may ask while the call goes on.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask())
        self.waiting.release()
        try:
            await self.go_on.wait()
        finally:
            self.code = code_of_cancellation()
            self.closed.release()

    async def _ask(self):
        self.code = code_of_cancellation()

    async def _do_load(self, context, argument):
        report_load(context, LoadReport(cpu_utilization=0.5, named_metrics={"queue": 3}))

    async def _do_log(self, context, argument):
        get_logger("test").info("working", step=1)

    async def _do_stage(self, context, argument):
        decode()
        await infer()

    async def _do_model(self, context, argument):
        """Does the rest of the text as a version of the model."""
        version, _, rest = argument.partition(" ")
        MODELS[version].answers()
        await self._do(rest, context)

    async def _do_request(self, context, argument):
        """Answers one request of a stream as a version of the model."""
        version, _, rest = argument.partition(" ")
        with counted_request() as counted:
            counted.answered_by(MODELS[version])
            await self._do(rest, context)

    async def _do_crash(self, context, argument):
        raise RuntimeError("secret detail")

    async def _do_group(self, context, argument):
        async with asyncio.TaskGroup() as group:
            group.create_task(self._do("not-found", context))

    async def _do_abort(self, context, argument):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "by hand")

    async def _do_hold(self, context, argument):
        held = Held()
        self.held.append(weakref.ref(held))
        await self._do(argument, context)

    async def _do_refuse(self, context, argument):
        raise NotFound("nothing is found")

    async def _do_wait(self, context, argument):
        self.waiting.release()
        try:
            await self.go_on.wait()
        finally:
            self.closed.release()

    async def _do_peer(self, context, argument):
        self.peers.add(context.peer())

    async def _do_stubborn(self, context, argument):
        self.waiting.release()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            raise NotFound("nobody waits for this") from None
        finally:
            self.closed.release()

    async def _do_sleep(self, context, milliseconds):
        await asyncio.sleep(float(milliseconds) / 1000)


if __name__ == "__main__":
    sys.exit(run(EchoApplication, EchoSettings.from_command_line()))
