"""vLLM's detokenizer replaced by one that only generated tokens can speak through.

vLLM 0.32 lets the tokenizer's `DecodeStream` read the prompt first. Where the prompt ends in U+FFFD
or inside a character, the stream takes no text for known, and its first text is the whole prompt
(vllm-project/vllm#48853). Stop strings then match in the prompt. vLLM's slow detokenizer loses text
at the same places.

`install_detokenizer` replaces one method of the output processor of a loaded engine. Each request
then gets a detokenizer of this module. vLLM still matches stop strings: it searches the text that
the detokenizer returns, and that text holds nothing of the prompt.

This module imports vLLM, so `vllm_engine` imports it only after vLLM is loaded.
"""

from typing import Any, Final

import vllm
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine.launch import TESTED_VLLM, check_vllm
from tidegate.serving.llm.engine.vocabulary import IncrementalTextDecoder, Vocabulary

__all__ = ["ByteDetokenizer", "TextDetokenizer", "install_detokenizer"]

_CONTEXT_TOKENS: Final = 8
_REPLACEMENT: Final = "\ufffd"


class ByteDetokenizer(BaseIncrementalDetokenizer):
    """Makes text of tokens that are bytes.

    Args:
        request: Of vLLM's.
        vocabulary: Of the model.
    """

    def __init__(self, request: EngineCoreRequest, vocabulary: Vocabulary) -> None:
        super().__init__(request)
        self._text = IncrementalTextDecoder(vocabulary, request.prompt_token_ids or ())

    def decode_next(self, next_token_id: int) -> str:
        """Gives the characters that a token completes."""
        return self._text.add(next_token_id)


class TextDetokenizer(BaseIncrementalDetokenizer):
    """Makes text of tokens that only their tokenizer can decode.

    It decodes the last tokens with and without the new one, and gives what the two do not have in
    common.

    Args:
        request: Of vLLM's.
        tokenizer: Of the model.
    """

    def __init__(self, request: EngineCoreRequest, tokenizer: Any) -> None:
        super().__init__(request)
        self._tokenizer = tokenizer
        self._window = list(request.prompt_token_ids or ())[-_CONTEXT_TOKENS:]
        self._known = len(self._window)
        self._before = self._decode()

    def decode_next(self, next_token_id: int) -> str:
        """Gives the text that a token adds; nothing while a character is incomplete."""
        self._window.append(next_token_id)
        text = self._decode()
        if text.endswith(_REPLACEMENT):
            return ""
        new = text[_common_length(self._before, text) :]
        # What was new is the context of what comes next.
        del self._window[: self._known]
        self._known = len(self._window)
        self._before = self._decode()
        return new

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text


def _common_length(one: str, other: str) -> int:
    """Gives how many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def install_detokenizer(processor: OutputProcessor, vocabulary: Vocabulary | None) -> None:
    """Has requests detokenized by this module from now on, and tries that out.

    Args:
        processor: The output processor of a loaded engine.
        vocabulary: Of its model; None where its tokens are not bytes.

    Raises:
        StartupError: vLLM is not the one that this was written for.
    """
    check_vllm(vllm.__version__)
    add = processor.add_request

    def add_request(request: EngineCoreRequest, *arguments: Any, **named: Any) -> None:
        add(request, *arguments, **named)
        state = processor.request_states[request.request_id]
        if state.logprobs_processor is None:
            return  # It makes a vector.
        state.detokenizer = (
            TextDetokenizer(request, processor.tokenizer)
            if vocabulary is None
            else ByteDetokenizer(request, vocabulary)
        )
        # The texts of tokens are ours as well: vLLM's move bytes from one token to the next.
        state.logprobs_processor.tokenizer = None

    processor.add_request = add_request  # type: ignore[method-assign]
    try:
        _try_out(processor)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise StartupError(
            f"vLLM {vllm.__version__} does not detokenize as vLLM {TESTED_VLLM} does; install that"
        ) from error


def _try_out(processor: OutputProcessor) -> None:
    """Sends a prompt that leaks from vLLM's own detokenizer the way of a request."""
    tokenizer = processor.tokenizer
    if tokenizer is None:
        raise TypeError("vLLM was told to have no tokenizer")
    prompt = tokenizer.encode("a" + _REPLACEMENT, add_special_tokens=False)
    answer = tokenizer.encode("b", add_special_tokens=False)
    name = "tidegate-try-out"
    request = EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(
            max_tokens=len(answer) + 1,
            stop=["a", _REPLACEMENT],
            output_kind=RequestOutputKind.FINAL_ONLY,
        ),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    processor.add_request(
        request, None, queue=RequestOutputCollector(RequestOutputKind.DELTA, name)
    )
    try:
        state = processor.request_states[name]
        if not isinstance(state.detokenizer, BaseIncrementalDetokenizer):
            raise TypeError("requests have no detokenizer")
        stopped = state.detokenizer.update(answer, False)
        text = state.detokenizer.get_next_output_text(finished=True, delta=True)
        if stopped or _REPLACEMENT in text or "a" in text:
            raise TypeError(f"the prompt leaks: {text!r}")
    finally:
        processor.abort_requests([name], internal=True)
