"""What a text generation is asked for: the prompt, how to choose tokens, and when to stop."""

from dataclasses import dataclass, field
from typing import Any

from funnel_export.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a row's tokens are chosen.

    Raises:
        SpecError: for values without a meaning.
    """

    temperature: float = 0.0
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0 for all."""
    top_p: float = 1.0
    """Share of the probability to sample from."""
    seed: int | None = None
    """Seed of this row alone; None for one that differs each time."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SpecError("invalid temperature", got=self.temperature, wanted="a finite number >= 0; 0 is greedy")
        if self.top_k < 0:
            raise SpecError("invalid top_k", got=self.top_k, wanted=">= 1, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise SpecError("invalid top_p", got=self.top_p, wanted="more than 0, at most 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise SpecError("invalid seed", got=self.seed, wanted="a number of 64 bits")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    def processors(self) -> Any:
        """Hugging Face's processors of the logits, in the order in which `generate` applies them."""
        from transformers.generation import logits_process as theirs

        chosen = theirs.LogitsProcessorList()
        if self.temperature not in (0, 1):
            chosen.append(theirs.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(theirs.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(theirs.TopPLogitsWarper(self.top_p))
        return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One text to generate.

    Raises:
        SpecError: for an empty prompt, no new tokens, negative token ids, or an empty stop string.
    """

    prompt: tuple[int, ...]
    """Token ids."""
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    """Token ids after which the text ends, such as that of the end of text."""
    stop_strings: tuple[str, ...] = ()
    """Strings at which the text ends; they are not part of it."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise SpecError("the prompt is empty", got="no tokens", wanted="at least one token")
        if min(self.prompt) < 0:
            raise SpecError("a token is outside the model's vocabulary", got=min(self.prompt), wanted=">= 0")
        if self.max_new_tokens < 1:
            raise SpecError("max_new_tokens must be at least 1", got=self.max_new_tokens, wanted=">= 1")
        if not all(self.stop_strings):
            raise SpecError("a stop string is empty", got=self.stop_strings, wanted="at least one character each")

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest text."""
        return len(self.prompt) + self.max_new_tokens
