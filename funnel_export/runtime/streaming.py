"""Streaming: pieces of text as soon as they are there, and the time of each token."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TextStreamer


class TimedStreamer(TextStreamer):
    """Hugging Face's text streamer, which calls a function with each piece and notes when each token came."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.times: list[float] = []
        """Seconds of `time.perf_counter` at each new token."""

    def put(self, value: Any) -> None:
        """Take the prompt, then each new token."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002 - TextStreamer's signature
        """Pass a piece on."""
        if self.show is not None and text:
            self.show(text)
