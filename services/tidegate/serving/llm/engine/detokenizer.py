"""Replaces vLLM's detokenizer by one that never returns text of the prompt.

vLLM 0.32 lets the tokenizer's `DecodeStream` read the prompt first. If the prompt ends in U+FFFD or
inside a character, the stream regards none of its text as known, and its first output is the whole
prompt (vllm-project/vllm#48853). Stop strings then match in the prompt. vLLM's slow detokenizer
loses text in the same cases.

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
    """Decodes tokens that are bytes.

    Args:
        request: vLLM's request.
        vocabulary: The model's vocabulary.
    """

    def __init__(self, request: EngineCoreRequest, vocabulary: Vocabulary) -> None:
        super().__init__(request)
        self._text = IncrementalTextDecoder(
            vocabulary, request.prompt_token_ids or (), special=_shows_special_tokens(request)
        )

    def decode_next(self, next_token_id: int) -> str:
        """Returns the characters that a token completes."""
        return self._text.add(next_token_id)


class TextDetokenizer(BaseIncrementalDetokenizer):
    """Decodes tokens that only their tokenizer can decode.

    It decodes the last tokens with and without the new one, and returns the difference.

    Args:
        request: vLLM's request.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, request: EngineCoreRequest, tokenizer: Any) -> None:
        super().__init__(request)
        self._tokenizer = tokenizer
        self._skips_special_tokens = not _shows_special_tokens(request)
        self._window = list(request.prompt_token_ids or ())[-_CONTEXT_TOKENS:]
        self._context_tokens = len(self._window)
        self._context_text = self._decode()

    def decode_next(self, next_token_id: int) -> str:
        """Returns the text that a token adds; nothing while a character is incomplete."""
        self._window.append(next_token_id)
        text = self._decode()
        if text.endswith(_REPLACEMENT):
            return ""
        new = text[_common_prefix_length(self._context_text, text) :]
        # The new tokens are the context of the next ones.
        del self._window[: self._context_tokens]
        self._context_tokens = len(self._window)
        self._context_text = self._decode()
        return new

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(
            self._window, skip_special_tokens=self._skips_special_tokens
        )
        return text


def _shows_special_tokens(request: EngineCoreRequest) -> bool:
    params = request.sampling_params
    return params is not None and not params.skip_special_tokens


def _common_prefix_length(one: str, other: str) -> int:
    """Returns the length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def install_detokenizer(processor: OutputProcessor, vocabulary: Vocabulary | None) -> None:
    """Installs this module's detokenizers in an engine, and tests them.

    Args:
        processor: The output processor of a loaded engine.
        vocabulary: The model's vocabulary; None if its tokens are not bytes.

    Raises:
        StartupError: The detokenizers do not fit this release of vLLM.
    """
    check_vllm(vllm.__version__)
    add = processor.add_request

    def add_request(request: EngineCoreRequest, *arguments: Any, **named: Any) -> None:
        add(request, *arguments, **named)
        state = processor.request_states[request.request_id]
        if state.logprobs_processor is None:
            return  # An embedding request.
        state.detokenizer = (
            TextDetokenizer(request, processor.tokenizer)
            if vocabulary is None
            else ByteDetokenizer(request, vocabulary)
        )
        # The server also decodes the tokens of log probabilities itself: vLLM moves bytes from one
        # token to the next.
        state.logprobs_processor.tokenizer = None

    processor.add_request = add_request  # type: ignore[method-assign]
    try:
        _test(processor)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise StartupError(
            f"vLLM {vllm.__version__} does not detokenize as vLLM {TESTED_VLLM} does; install that"
        ) from error


def _test(processor: OutputProcessor) -> None:
    """Runs a prompt that leaks with vLLM's own detokenizer through the new ones."""
    tokenizer = processor.tokenizer
    if tokenizer is None:
        raise TypeError("vLLM runs without a tokenizer")
    prompt = tokenizer.encode("a" + _REPLACEMENT, add_special_tokens=False)
    answer = tokenizer.encode("b", add_special_tokens=False)
    name = "tidegate-test"
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
