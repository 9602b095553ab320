"""Text generation as a model of Triton: its inputs and outputs, and how they become a request and its answer.

The names are those of Triton's back ends for vLLM and TensorRT-LLM where these have the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.errors import SpecError
from funnel_export.runtime.batch import Token
from funnel_export.runtime.request import Request, Sampling
from funnel_export.spec.defaults import MAX_NEW_TOKENS

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestReader:
    """Makes requests of a batch from Triton's inputs."""

    tokenizer: Any
    """A fast tokenizer of transformers."""
    limit: int
    """Most tokens of a text with its prompt."""
    end_tokens: frozenset[int]
    """Tokens after which a text ends."""
    defaults: Any
    """A `GenerationConfig` of transformers, for what is not given."""

    def read(self, inputs: Arrays, parameters: Mapping[str, object]) -> Request:
        """The request for a text.

        Args:
            inputs: values of the inputs that the client gave, by name; see `INPUTS` in `triton_config`.
            parameters: what else the client gave; inputs of an unknown name are here too.

        Raises:
            SpecError: for values without a meaning, unknown options, or not exactly one prompt.
        """
        if parameters:
            raise SpecError(
                "unknown options",
                got=", ".join(map(repr, parameters)),
                wanted="only the model's inputs, by their names",
            )
        prompt = self._prompt(inputs)
        longest = _number(inputs, "max_tokens")
        if longest is None:
            room = max(1, self.limit - len(prompt))
            longest = min(self.defaults.max_new_tokens or MAX_NEW_TOKENS, room)
        return Request(
            prompt=prompt,
            max_new_tokens=longest,
            sampling=self._sampling(inputs),
            stop_tokens=self.end_tokens,
            stop_strings=tuple(_strings(inputs, "stop")),
        )

    def _prompt(self, inputs: Arrays) -> tuple[int, ...]:
        texts, ids = _strings(inputs, "text_input"), inputs.get("input_ids")
        if bool(texts) == (ids is not None):
            raise SpecError(
                "the request does not have exactly one prompt",
                got="text_input and input_ids" if texts else "neither text_input nor input_ids",
                wanted="one of the two",
            )
        if ids is not None:
            return tuple(ids.ravel().tolist())
        return tuple(self.tokenizer(texts[0]).input_ids)

    def _sampling(self, inputs: Arrays) -> Sampling:
        """The sampling of a request, or of `generation_config.json`, or greedy; any option of sampling turns it on."""
        names = ("temperature", "top_k", "top_p")
        given = {name: value for name in names if (value := _number(inputs, name)) is not None}
        seed = _number(inputs, "seed")
        if self.defaults.do_sample:
            usual = {name: getattr(self.defaults, name, None) for name in names}
            given = {name: value for name, value in usual.items() if value is not None} | given
        elif not given:
            return Sampling(seed=seed)
        return Sampling(**({"temperature": 1.0} | given), seed=seed)


class Reply:
    """The answer to a request as its tokens come: in one response, or in parts."""

    def __init__(self, request: Request, stream: bool) -> None:
        self._prompt_tokens, self._stream = len(request.prompt), stream
        self._text, self._tokens = "", list[int]()

    def add(self, token: Token) -> dict[str, NDArray[Any]] | None:
        """The outputs of the next response, see `OUTPUTS` in `triton_config`; None if it is not time for one.

        A part has the text that became certain, and all token ids since the part before.
        """
        assert token.token is not None
        self._text += token.text
        self._tokens.append(token.token)
        if not token.finish_reason and not (self._stream and self._text):
            return None
        outputs: dict[str, NDArray[Any]] = {
            "text_output": _string(self._text),
            "output_ids": np.array(self._tokens, np.int64),
            "finish_reason": _string(token.finish_reason or ""),
            "num_input_tokens": np.array([self._prompt_tokens], np.uint32),
            "num_output_tokens": np.array([len(self._tokens)], np.uint32),
        }
        self._text, self._tokens = "", []
        return outputs


def wants_stream(inputs: Arrays) -> bool:
    """Whether a client wants its text in parts."""
    return bool(_number(inputs, "stream"))


def _number(inputs: Arrays, name: str) -> Any:
    """The number in an input, None if it is not given."""
    if name not in inputs:
        return None
    (value,) = inputs[name].ravel()
    return float(str(value)) if isinstance(value, np.float32) else value.item()  # 0.7 and not 0.699999988


def _strings(inputs: Arrays, name: str) -> list[str]:
    """The strings in an input; none if it is not given."""
    try:
        return [each.decode() for each in inputs.get(name, np.array([], object)).ravel()]
    except UnicodeDecodeError as err:
        raise SpecError(f"{name} is not valid UTF-8", got=err) from err


def _string(text: str) -> NDArray[Any]:
    return np.array([text.encode()], object)
