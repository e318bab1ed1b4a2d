"""The Python client: typed calls to the vision and LLM servers over gRPC.

    from pathlib import Path
    from tidegate.client import Client

    with Client("127.0.0.1:8500") as client:
        print(client.vision.classify(Path("cat.jpg")).top.label)

    with Client("127.0.0.1:8600") as client:
        for delta in client.llm.chat("What is the capital of Japan?"):
            print(delta.text, end="", flush=True)

:class:`AsyncClient` has the same methods with ``await``. Every error is a
:class:`~tidegate.errors.TidegateError`: an :class:`InvalidInputError` before the client sends
anything, a :class:`TidegateRpcError` after.
"""

from tidegate.client._async import AsyncClient
from tidegate.client._async_llm import AsyncGenerationStream, AsyncLlmClient
from tidegate.client._async_vision import AsyncVisionClient
from tidegate.client._shared.calls import HealthStatus
from tidegate.client._shared.channel import ClientOptions, Retry, Tls
from tidegate.client._shared.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidInputError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    RpcFailure,
    ServerFaultError,
    TidegateRpcError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from tidegate.client._shared.images import ArrayLike, ImageInput
from tidegate.client._shared.llm import MessageInput, PromptInput
from tidegate.client._shared.llm_types import (
    Completion,
    Delta,
    Embeddings,
    Finish,
    FinishReason,
    GenerateOptions,
    LlmModel,
    LlmTimings,
    Message,
    ModelKind,
    PositionLogprobs,
    Role,
    Tokenization,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tidegate.client._shared.vision import (
    Classification,
    ClassifyResult,
    ImageResult,
    ModelState,
    Precision,
    StreamAnswer,
    VisionModel,
    VisionTimings,
)
from tidegate.client._sync import Client
from tidegate.client._sync_llm import GenerationStream, LlmClient
from tidegate.client._sync_vision import VisionClient

__all__ = [
    "ArrayLike",
    "AsyncClient",
    "AsyncGenerationStream",
    "AsyncLlmClient",
    "AsyncVisionClient",
    "Classification",
    "ClassifyResult",
    "Client",
    "ClientOptions",
    "Completion",
    "DeadlineExceededError",
    "Delta",
    "Embeddings",
    "FieldViolation",
    "Finish",
    "FinishReason",
    "GenerateOptions",
    "GenerationStream",
    "HealthStatus",
    "ImageInput",
    "ImageResult",
    "InvalidInputError",
    "InvalidRequestError",
    "LlmClient",
    "LlmModel",
    "LlmTimings",
    "Message",
    "MessageInput",
    "ModelKind",
    "ModelState",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "PositionLogprobs",
    "Precision",
    "PromptInput",
    "RequestCancelledError",
    "Retry",
    "Role",
    "RpcFailure",
    "ServerFaultError",
    "StreamAnswer",
    "TidegateRpcError",
    "Tls",
    "TokenLogprob",
    "Tokenization",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "Usage",
    "VisionClient",
    "VisionModel",
    "VisionTimings",
]
