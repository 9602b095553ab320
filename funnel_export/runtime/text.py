"""The text of tokens that come one by one, up to a stop string."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream


@dataclass(slots=True)
class TextStream:
    """Decodes tokens into pieces of text, and holds back what could be the beginning of a stop string."""

    tokenizer: Any
    """A tokenizer of the library `tokenizers`, such as `backend_tokenizer` of one of transformers."""
    stops: Sequence[str] = ()
    stopped: bool = False
    """Whether a stop string was found; the text ends before it."""
    _stream: Any = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    _tokens: list[int] = field(default_factory=list)
    _decoded: int = 0
    """Characters that the stream has given."""
    _held: str = ""

    def copy(self) -> "TextStream":
        """Another stream at the same place."""
        other = copy.copy(self)
        other._stream, other._tokens = copy.copy(self._stream), [*self._tokens]
        return other

    def add(self, token: int) -> str:
        """The text that is certain with this token; empty within a character or a possible stop string."""
        self._tokens.append(token)
        piece = self._stream.step(self.tokenizer, token) or ""
        self._decoded += len(piece)
        return self._cut(piece)

    def end(self) -> str:
        """The text that was held back, and an incomplete character, once no token follows."""
        if self.stopped:
            return ""
        piece = self.tokenizer.decode(self._tokens, skip_special_tokens=True)[self._decoded :]
        shown = self._cut(piece)
        return shown if self.stopped else shown + self._held

    def _cut(self, piece: str) -> str:
        """The part of the held text and a new piece that can be shown."""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is an incomplete stop string."""
    return next(size for size in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:size]))
