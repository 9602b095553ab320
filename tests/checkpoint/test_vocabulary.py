"""The vocabularies of a base model and its instruct model: which differences are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from models import save_tiny_checkpoint

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.vocabulary import check_vocabularies
from funnel_export.errors import CheckpointError

Words = list[str]
WORDS = ["<pad>", "<unused0>", "the", "a", "<b>"]


def added(index: int, content: str, *, special: bool) -> dict[str, Any]:
    return {"id": index, "content": content, "special": special}


def model(folder: Path, words: Words, *tokens: dict[str, Any], unigram: bool = False) -> Checkpoint:
    """A checkpoint whose tokenizer has these words, and added tokens."""
    checkpoint = save_tiny_checkpoint(folder)
    vocab: object = [[word, -1.0] for word in words] if unigram else {word: i for i, word in enumerate(words)}
    content = {"version": "1.0", "model": {"type": "BPE", "vocab": vocab}, "added_tokens": tokens}
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    return Checkpoint.open(checkpoint)


PAD = added(0, "<pad>", special=True)
FIT = {
    "equal": (WORDS, [PAD]),
    "a reserved token with a use": (["<pad>", "<call>", "the", "a", "<b>"], [PAD]),
    "a special token with another name": (["<nothing>", "<unused0>", "the", "a", "<b>"], []),
    "another special token": (WORDS, [PAD, added(4, "<turn>", special=True)]),
    "a further token": ([*WORDS, "an"], [PAD, added(6, "<image>", special=False)]),
}
DIFFER = {
    "another word": (["<pad>", "<unused0>", "that", "a", "<b>"], [PAD], "1 tokens differ.*2: 'the' and 'that'"),
    "another order": (["<pad>", "<unused0>", "a", "the", "<b>"], [PAD], "2 tokens differ"),
    "another added token": (WORDS, [PAD, added(4, "<c>", special=False)], "4: '<b>' and '<c>'"),
}


@pytest.mark.parametrize("unigram", [False, True])
@pytest.mark.parametrize(("words", "tokens"), FIT.values(), ids=FIT)
def test_tokens_that_may_differ(words: Words, tokens: list[dict[str, Any]], unigram: bool, tmp_path: Path) -> None:
    one, other = model(tmp_path / "one", WORDS, PAD), model(tmp_path / "other", words, *tokens, unigram=unigram)
    check_vocabularies(one, other)
    check_vocabularies(other, one)


@pytest.mark.parametrize(("words", "tokens", "says"), DIFFER.values(), ids=DIFFER)
def test_tokens_that_may_not_differ(words: Words, tokens: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    one, other = model(tmp_path / "one", WORDS, PAD), model(tmp_path / "other", words, *tokens)
    with pytest.raises(CheckpointError, match=says):
        check_vocabularies(one, other)


def test_models_without_a_tokenizer_are_not_compared(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one", WORDS), model(tmp_path / "other", WORDS[::-1])
    (other.path / "tokenizer.json").unlink()
    check_vocabularies(one, other)
