"""Pieces of text add up to the text, whatever the tokens' borders are, and end before a stop string."""

import itertools
import random
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Sequence as InOrder
from tokenizers.models import WordLevel

from funnel_export.runtime.text import TextStream

WORDS = ["a", "b", "ab", "ba", "</", "s>", "</s>", "x", *(f"<0x{byte:02X}>" for byte in "é€".encode())]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Tokens of one or two characters, and of bytes of characters."""
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="x"))  # noqa: S106
    made.decoder = InOrder([ByteFallback(), Fuse()])
    return made


def read(tokenizer: Any, words: list[str], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream, pieces = TextStream(tokenizer, stops), []
    for word in words:
        pieces.append(stream.add(WORDS.index(word)))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.end()], stream.stopped


def test_a_character_comes_when_it_is_complete(tokenizer: Any) -> None:
    euro = WORDS[-3:]
    assert read(tokenizer, ["a", *euro, "b"]) == (["a", "", "", "€", "b", ""], False)
    pieces, _ = read(tokenizer, ["a", *euro[:2]])
    assert pieces[:3] == ["a", "", ""]
    assert pieces[3] in ("\ufffd", "\ufffd\ufffd"), "an incomplete character at the end is shown as such"


def test_the_beginning_of_a_stop_string_is_held_back(tokenizer: Any) -> None:
    assert read(tokenizer, ["x", "a", "a", "b", "x"], ("aab",)) == (["x", "", "", ""], True)
    assert read(tokenizer, ["x", "a", "a", "a", "x"], ("aab",)) == (["x", "", "", "a", "aax", ""], False)
    assert read(tokenizer, ["x", "a", "a"], ("aab",)) == (["x", "", "", "aa"], False)


def test_a_stop_string_in_any_tokens(tokenizer: Any) -> None:
    """Every way to split a text gives the text before the first stop string."""
    chance = random.Random(0)  # noqa: S311 - no secret
    stopped_texts = 0
    for length, stops in itertools.product(range(1, 9), [("ab",), ("bab", "xx"), ("</s>",), ("€a", "aé")]):
        for _ in range(20):
            words = chance.choices([*WORDS[:8], "é"], k=length)
            tokens = [token for word in words for token in (WORDS[8:10] if word == "é" else [word])]
            pieces, stopped = read(tokenizer, tokens, stops)
            text = "".join(words)
            places = [text.index(stop) for stop in stops if stop in text]
            assert stopped == bool(places)
            assert "".join(pieces) == (text[: min(places)] if places else text)
            stopped_texts += stopped
    assert stopped_texts > 50


def test_a_copy_goes_on_by_itself(tokenizer: Any) -> None:
    stream = TextStream(tokenizer, ("ab",))
    stream.add(WORDS.index("a"))
    other = stream.copy()
    assert (stream.add(WORDS.index("x")), other.add(WORDS.index("b"))) == ("ax", "")
    assert (stream.stopped, other.stopped, other.end(), stream.end()) == (False, True, "", "")
