"""The blocking client of the LLM service."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, Unpack

import grpc

from tidegate.client._shared.calls import CallContext
from tidegate.client._shared.errors import TidegateRpcError
from tidegate.client._shared.llm import (
    MessageInput,
    PartialAnswer,
    PromptInput,
    chat_request,
    complete_request,
    completion,
    delta,
    embed_request,
    embeddings,
    generate_request,
    llm_model,
    tokenization,
    tokenize_request,
)
from tidegate.client._shared.llm_types import (
    Completion,
    Delta,
    Embeddings,
    Finish,
    GenerateOptions,
    LlmModel,
    Tokenization,
    Tool,
)
from tidegate.client._shared.spans import CallSpan
from tidegate.client._sync_calls import call_unary
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

__all__ = ["GenerationStream", "LlmClient"]


class _Call(Protocol):
    def __iter__(self) -> Iterator[llm_pb2.GenerateResponse | llm_pb2.ChatResponse]: ...

    def __next__(self) -> llm_pb2.GenerateResponse | llm_pb2.ChatResponse: ...

    def cancel(self) -> bool: ...


class GenerationStream:
    """A streamed answer: iterate over its deltas, or :meth:`read` it whole.

        with client.llm.chat("Tell me a story.") as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.finish)

    Leaving the ``with`` block, or closing the stream, before its end stops the model.
    """

    def __init__(
        self,
        call: _Call,
        context: CallContext,
        deadline_s: float | None,
        span: CallSpan,
    ) -> None:
        self._call = call
        self._context = context
        self._deadline_s = deadline_s
        self._span = span
        self._answer = PartialAnswer(context.target)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._answer.text

    @property
    def finish(self) -> Finish | None:
        """How the answer ended; ``None`` before its end."""
        return self._answer.finish

    def read(self) -> Completion:
        """Reads to the end and returns the whole answer.

        Raises:
            TidegateRpcError: The call failed.
        """
        for _ in self:
            pass
        return self._answer.whole()

    def close(self) -> None:
        """Cancels the call, and so stops the model; does nothing after the end."""
        self._call.cancel()
        # An answer with its finish is complete, even if the stream was not read to its end.
        if self.finish is None:
            self._span.abandon()
        else:
            self._span.end()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        try:
            piece = delta(next(self._call))
        except StopIteration:
            if self._answer.finish is None:
                raise self._failed(self._answer.truncated()) from None
            self._span.end()
            raise
        except grpc.RpcError as error:
            raise self._failed(self._context.error(error, self._deadline_s)) from error
        self._answer.add(piece)
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _failed(self, error: TidegateRpcError) -> TidegateRpcError:
        self._span.end(error)
        return error


class LlmClient:
    """Calls a ``tidegate.llm.v1.LlmService``; found at :attr:`Client.llm`."""

    def __init__(self, channel: grpc.Channel, context: CallContext) -> None:
        self._stub = llm_pb2_grpc.LlmServiceStub(channel)
        self._context = context

    def chat(
        self,
        messages: str | Iterable[MessageInput],
        *,
        continue_last_message: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
        tools: Iterable[Tool] = (),
        tool_choice: str | None = None,
        single_tool_call: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Answers a conversation, as a stream.

        Args:
            messages: The conversation so far, oldest first; a text is one message of the user.
            continue_last_message: Continue the last message, which is the assistant's.
            template_arguments: Further variables for the model's chat template.
            tools: Tools that the model may call; see :attr:`Delta.tool_calls`.
            tool_choice: ``auto`` (the default), ``none``, ``required``, or the name of the tool
                that the model must call.
            single_tool_call: Let the model call at most one tool.
            timeout_s: Deadline of the whole stream in seconds; the client's default unless given.
            **options: Model and sampling options; see :class:`GenerateOptions`.

        Raises:
            InvalidInputError: An argument is invalid.
        """
        request = chat_request(
            messages,
            options,
            continue_last_message=continue_last_message,
            template_arguments=template_arguments,
            tools=tools,
            tool_choice=tool_choice,
            single_tool_call=single_tool_call,
        )
        self._context.checked(request)
        deadline_s = self._context.stream_deadline_s(timeout_s)
        span = self._context.span(type(request))
        metadata = self._context.metadata(span)
        call = self._stub.Chat(request, timeout=deadline_s, metadata=metadata)
        return GenerationStream(call, self._context, deadline_s, span)

    def generate(
        self,
        prompt: PromptInput,
        *,
        special_tokens_as_text: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Continues a prompt, as a stream.

        Args:
            prompt: A text, or token ids.
            special_tokens_as_text: Treat the names of special tokens in a text ("<|im_end|>") as
                plain text.
            timeout_s: Deadline of the whole stream in seconds; the client's default unless given.
            **options: Model and sampling options; see :class:`GenerateOptions`.

        Raises:
            InvalidInputError: An argument is invalid.
        """
        request = generate_request(prompt, options, special_tokens_as_text=special_tokens_as_text)
        self._context.checked(request)
        deadline_s = self._context.stream_deadline_s(timeout_s)
        span = self._context.span(type(request))
        metadata = self._context.metadata(span)
        call = self._stub.Generate(request, timeout=deadline_s, metadata=metadata)
        return GenerationStream(call, self._context, deadline_s, span)

    def complete(
        self,
        prompt_or_messages: PromptInput | Sequence[MessageInput],
        *,
        special_tokens_as_text: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Continues a prompt (a text or token ids), or answers messages, in one response.

        Args:
            prompt_or_messages: The prompt, or the conversation so far.
            special_tokens_as_text: Treat the names of special tokens in a text prompt as plain
                text; in messages they always are.
            timeout_s: Deadline in seconds; the client's default unless given.
            **options: Model and sampling options; see :class:`GenerateOptions`.

        Raises:
            InvalidInputError: An argument is invalid.
            TidegateRpcError: The call failed.
        """
        request = complete_request(
            prompt_or_messages, options, special_tokens_as_text=special_tokens_as_text
        )
        return completion(call_unary(self._context, self._stub.Complete, request, timeout_s))

    def tokenize(
        self,
        text_or_messages: str | Sequence[MessageInput],
        *,
        model: str = "",
        omit_special_tokens: bool = False,
        special_tokens_as_text: bool = False,
        timeout_s: float | None = None,
    ) -> Tokenization:
        """Turns a text, or a conversation by the chat template, into tokens.

        Args:
            text_or_messages: The text, or the conversation.
            model: Name of the model; the server's model unless given.
            omit_special_tokens: Omit the special tokens that the tokenizer adds to a text.
            special_tokens_as_text: Treat the names of special tokens in a text as plain text; in
                messages they always are.
            timeout_s: Deadline in seconds; the client's default unless given.

        Raises:
            TidegateRpcError: The call failed.
        """
        request = tokenize_request(
            text_or_messages,
            model=model,
            omit_special_tokens=omit_special_tokens,
            special_tokens_as_text=special_tokens_as_text,
        )
        return tokenization(call_unary(self._context, self._stub.Tokenize, request, timeout_s))

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "",
        skip_special_tokens: bool = False,
        timeout_s: float | None = None,
    ) -> str:
        """Turns token ids into text.

        Raises:
            TidegateRpcError: The call failed.
        """
        request = llm_pb2.DetokenizeRequest(
            model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
        return call_unary(self._context, self._stub.Detokenize, request, timeout_s).text

    def embed(
        self,
        inputs: str | Sequence[PromptInput],
        *,
        model: str = "",
        special_tokens_as_text: bool = False,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Turns texts, or token ids, into vectors of length 1.

        Args:
            inputs: Texts, or lists of token ids; one text is one input.
            model: Name of the model; the server's model unless given.
            special_tokens_as_text: Treat the names of special tokens in texts as plain text.
            timeout_s: Deadline in seconds; the client's default unless given.

        Raises:
            UnsupportedError: The server's model generates text and makes no vectors.
            TidegateRpcError: The call failed.
        """
        request = embed_request(inputs, model=model, special_tokens_as_text=special_tokens_as_text)
        return embeddings(call_unary(self._context, self._stub.Embed, request, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[LlmModel, ...]:
        """Lists the models of the server.

        Raises:
            TidegateRpcError: The call failed.
        """
        request = llm_pb2.ListModelsRequest()
        response = call_unary(self._context, self._stub.ListModels, request, timeout_s)
        return tuple(llm_model(model) for model in response.models)
