"""An answer put together from its deltas, for the streams of both clients."""

import grpc

from tidegate.client._shared.errors import RpcFailure, TidegateRpcError, error_of
from tidegate.client._shared.llm_types import Completion, Delta, Finish

__all__ = ["PartialAnswer"]


class PartialAnswer:
    """What has come of an answer; the server ends every whole one with a ``finish``."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._deltas: list[Delta] = []

    def add(self, delta: Delta) -> None:
        """Takes the next delta."""
        self._deltas.append(delta)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(delta.text for delta in self._deltas)

    @property
    def finish(self) -> Finish | None:
        """How the answer ended; ``None`` while it has not."""
        return self._deltas[-1].finish if self._deltas else None

    def whole(self) -> Completion:
        """The whole answer.

        Raises:
            ServerFaultError: the stream ended without saying how.
        """
        finish = self.finish
        if finish is None:
            raise self.cut_short()
        return Completion(
            text=self.text,
            token_ids=tuple(token for delta in self._deltas for token in delta.token_ids),
            logprobs=tuple(item for delta in self._deltas for item in delta.logprobs),
            finish=finish,
        )

    def cut_short(self) -> TidegateRpcError:
        """The error for a stream that ended without saying how."""
        return error_of(
            RpcFailure(
                code=grpc.StatusCode.DATA_LOSS,
                message="the answer ended without a finish; it may be cut short",
                target=self._target,
            )
        )
