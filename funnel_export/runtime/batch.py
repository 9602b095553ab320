"""A batch of texts that are generated together; texts join and leave it between steps (continuous batching).

A text first reads its prompt alone, in chunks, and then joins the others, whose steps read one token each. What the
batch holds is replaced as a whole at the end of a step: a step that fails or is interrupted leaves it as it was.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from funnel_export.errors import SpecError
from funnel_export.runtime.request import Request, Sampling
from funnel_export.runtime.state import State, bytes_of, capacity_of, slots_of
from funnel_export.runtime.stepper import Stepper
from funnel_export.runtime.text import TextStream
from funnel_export.spec.stages import MIDDLE

FinishReason = Literal["stop", "length", "error"]
"""Why a text has ended: a stop token or string; its largest number of tokens; logits that are not finite."""


@dataclass(frozen=True, slots=True)
class Token:
    """A new token of a text."""

    key: int
    """The key of the text, as `insert` returned it."""
    token: int | None
    """The token's id; None if the logits were not finite."""
    text: str
    """The piece of text that became certain; empty without a tokenizer."""
    finish_reason: FinishReason | None
    """Why the text has ended; None while it continues. A text that has ended is no longer in the batch."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """A text of the batch."""

    key: int
    request: Request
    generator: torch.Generator
    text: TextStream | None
    tokens: tuple[int, ...] = ()
    """New tokens so far; the graphs have not read the last one yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """A text that reads its prompt, or waits until it can join the others."""

    row: Row
    state: State
    """State of this row alone."""

    @property
    def read(self) -> int:
        """Tokens of the prompt that have been read."""
        return int(self.state.lengths[0])

    @property
    def ready(self) -> bool:
        """Whether the prompt has been read."""
        return self.read == len(self.row.request.prompt)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Contents:
    """What a batch holds between two steps."""

    state: State
    """State of the rows that step together."""
    together: tuple[Row, ...] = ()
    """Rows that step together, in the order of the state's rows."""
    apart: tuple[Apart, ...] = ()
    """Rows whose prompt is still being read, in the order of their arrival."""
    steps: int = 0
    """Steps of the rows together so far; chunks of prompts do not count."""
    middle_steps: int = 0
    """How many of these ran the funnel's middle."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All texts."""
        return (*self.together, *(each.row for each in self.apart))

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return self.state.nbytes + sum(each.state.nbytes for each in self.apart)


@dataclass(kw_only=True, slots=True, eq=False)
class Batch:
    """Texts that are generated together. One thread at a time calls it; only `check` and `has_room` are thread-safe.

    Raises:
        SpecError: for limits below 1.
    """

    stepper: Stepper
    max_rows: int
    """Most texts at the same time."""
    max_bytes: int | None = None
    """Most bytes of the caches when every text has its largest length. While rows join or leave, their old and new
    arrays exist together."""
    tokenizer: Any = None
    """A fast tokenizer of transformers, for `Token.text` and stop strings."""
    chunk: int = 512
    """Most prompt tokens that one step reads. Each prompt is read in chunks of this size, whatever other texts do."""
    aligned: bool = True
    """Whether a text waits, for less than one window of steps, to close its windows in the same steps as the others."""
    held: Contents = field(init=False)
    """The contents, which a step replaces as a whole."""
    _keys: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("max_rows", "chunk", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1", got=value, wanted=">= 1")
        self.held = Contents(state=self.stepper.new_state(0))

    @property
    def keys(self) -> list[int]:
        """The keys of the texts in the batch."""
        return [row.key for row in self.held.rows]

    @property
    def middle_share(self) -> float:
        """Share of the steps so far that ran the middle: 1/S at best, 1 - (1 - 1/S)^rows for independent phases."""
        return self.held.middle_steps / max(1, self.held.steps)

    def check(self, request: Request) -> None:
        """Raise `SpecError` if this batch could not generate a text even with no other text in it."""
        limit = self.stepper.limit
        if request.longest > limit:
            raise SpecError(
                "the text is longer than the model takes",
                got=f"{len(request.prompt)} tokens of the prompt and {request.max_new_tokens} new tokens",
                wanted=f"at most {limit} tokens",
                hint="a shorter prompt, or fewer new tokens",
            )
        if max(request.prompt) >= self.stepper.vocab_size:
            raise SpecError(
                "a token is outside the model's vocabulary",
                got=max(request.prompt),
                wanted=f"0 to {self.stepper.vocab_size - 1}",
            )
        if request.stop_strings and self.tokenizer is None:
            raise SpecError("stop strings need a tokenizer", got=request.stop_strings, wanted="Batch(tokenizer=...)")
        if self.max_bytes is not None and (needed := self._bytes([request])) > self.max_bytes:
            raise SpecError(
                "the text is longer than the batch takes",
                got=f"{request.longest} tokens, whose caches have {needed:,} bytes",
                wanted=f"at most {self.max_bytes:,} bytes",
                hint="a shorter prompt, fewer new tokens, or a larger max_bytes",
            )

    def has_room(self, *requests: Request) -> bool:
        """Whether these texts can all join now."""
        requests = (*(row.request for row in self.held.rows), *requests)
        fits = self.max_bytes is None or self._bytes(requests) <= self.max_bytes
        return fits and len(requests) <= self.max_rows

    def insert(self, request: Request) -> int:
        """Add a text; the next steps read its prompt. Returns the key of its tokens.

        Raises:
            SpecError: if the text can never be generated here, or the batch has no room for it now.
        """
        self.check(request)
        if not self.has_room(request):
            raise SpecError(
                "the batch is full",
                got=f"{len(self.held.rows)} texts of {self.held.nbytes:,} bytes",
                wanted="room for one more",
                hint="insert it once has_room is true, or a larger max_rows or max_bytes",
            )
        generator = torch.Generator()
        if request.sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.sampling.seed)
        text = None
        if self.tokenizer is not None:
            text = TextStream(self.tokenizer.backend_tokenizer, request.stop_strings)
        row = Row(key=self._keys, request=request, generator=generator, text=text)
        self.held = replace(self.held, apart=(*self.held.apart, Apart(row, self.stepper.new_state(1))))
        self._keys += 1
        return row.key

    def remove(self, key: int) -> None:
        """Take a text out of the batch and free its row. A text that has left already is no error."""
        held = self.held
        state, together = _without(held.state, held.together, {key})
        apart = tuple(each for each in held.apart if each.row.key != key)
        self.held = replace(held, state=state, together=together, apart=apart)

    def next(self) -> list[Token]:
        """Run one step: one token of each text that has joined, and a chunk of the prompts of those that have not.

        Returns:
            The new tokens, at most one of a text.
        """
        held = self._joined(self.held)
        held, tokens = self._stepped(held)
        held, first = self._read(held)
        self.held = held
        return tokens + first

    def _bytes(self, requests: Sequence[Request]) -> int:
        """Bytes of the caches when all these texts have their largest lengths."""
        longest = max(request.longest for request in requests)
        return bytes_of(self.stepper.layout, len(requests), capacity_of(longest, self.stepper.limit))

    def _joined(self, held: Contents) -> Contents:
        """Join the texts that have read their prompts and have the same phase as the others."""
        state, together, apart = held.state, held.together, held.apart
        for each in held.apart:
            phase = each.read - int(state.lengths[0]) if together else 0
            if not each.ready or (self.aligned and phase % self.stepper.stride):
                continue
            other = copy.copy(each.state)
            if together:
                state = copy.copy(state)
                state.join(other)
            else:
                state = other
            together = (*together, each.row)
            apart = tuple(another for another in apart if another is not each)
        return replace(held, state=state, together=together, apart=apart)

    def _stepped(self, held: Contents) -> tuple[Contents, list[Token]]:
        """One token of each text that has joined."""
        if not held.together:
            return held, []
        state = copy.copy(held.state)  # a step writes behind the tokens of the old one, and sets the new one's lengths
        logits = self.stepper.step(state, np.array([[row.tokens[-1]] for row in held.together]))
        before, after = (slots_of(each.lengths, self.stepper.stride) for each in (held.state, state))
        rows, tokens = zip(*map(_continued, held.together, logits[:, -1]), strict=True)
        state, together = _without(state, rows, {each.key for each in tokens if each.finish_reason})
        middle = MIDDLE in self.stepper.sessions and bool((after > before).any())
        held = replace(
            held, state=state, together=together, steps=held.steps + 1, middle_steps=held.middle_steps + middle
        )
        return held, list(tokens)

    def _read(self, held: Contents) -> tuple[Contents, list[Token]]:
        """Chunks of prompts, those that came first, and the first tokens of texts whose prompts have been read."""
        apart, tokens, left = list[Apart](), list[Token](), self.chunk
        for each in held.apart:
            chunk = each.row.request.prompt[each.read : each.read + self.chunk]
            left -= len(chunk)
            if each.ready or left < 0:
                apart.append(each)
                continue
            state = copy.copy(each.state)
            logits = self.stepper.step(state, np.array([chunk]))
            now = Apart(each.row, state)
            if now.ready:
                row, token = _continued(each.row, logits[0, -1])
                now = Apart(row, state)
                tokens.append(token)
                if token.finish_reason:
                    continue
            apart.append(now)
        return replace(held, apart=tuple(apart)), tokens


def _without(state: State, rows: Sequence[Row], keys: set[int]) -> tuple[State, tuple[Row, ...]]:
    """A state and its rows without some of them."""
    kept = [index for index, row in enumerate(rows) if row.key not in keys]
    if len(kept) < len(rows):
        state = copy.copy(state)
        state.select(kept)
    return state, tuple(rows[index] for index in kept)


def _continued(row: Row, logits: NDArray[Any]) -> tuple[Row, Token]:
    """A row with the token that follows from its logits, [vocab_size]."""
    logits = np.asarray(logits, np.float32)
    if not np.isfinite(logits).all():
        return row, Token(row.key, None, "", "error")
    request, generator = row.request, row.generator.clone_state()
    token = _chosen(logits, request.sampling, generator)
    tokens = (*row.tokens, token)
    stopped, full = token in request.stop_tokens, len(tokens) == request.max_new_tokens
    text, piece = row.text and row.text.copy(), ""
    if text is not None:
        piece = "" if stopped else text.add(token)
        piece += text.end() if stopped or full else ""
        stopped |= text.stopped
    reason: FinishReason | None = "stop" if stopped else "length" if full else None
    return replace(row, tokens=tokens, generator=generator, text=text), Token(row.key, token, piece, reason)


def _chosen(logits: NDArray[Any], sampling: Sampling, generator: torch.Generator) -> int:
    """A token, as Hugging Face's `generate` chooses it."""
    if sampling.greedy:
        return int(logits.argmax())
    scores = torch.from_numpy(logits[None].copy())
    none = torch.empty(1, 0, dtype=torch.long)  # these processors do not look at earlier tokens
    scores = sampling.processors()(none, scores)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
