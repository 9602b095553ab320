"""Compares the vocabularies of two models, as their `tokenizer.json` have them."""

import re

from pydantic import BaseModel, ValidationError

from funnel_export.checkpoint.checkpoint import Checkpoint, read_json
from funnel_export.errors import CheckpointError, describe_invalid

TOKENIZER = "tokenizer.json"
UNUSED = re.compile(r"[<\[]unused_?\d+[>\]]")
"""Tokens that a vocabulary reserves; a tuned model may use some of them under other names."""
SHOWN = 3
"""Largest number of tokens that a message lists."""


class _Added(BaseModel):
    """A token that is looked up before the text is divided into others."""

    id: int
    content: str
    special: bool = False


class _Model(BaseModel):
    """The tokens of the algorithm: with their numbers, or in their order with their scores."""

    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _Tokenizer(BaseModel):
    """The parts of a `tokenizer.json` that say which number means which token."""

    model: _Model = _Model()
    added_tokens: list[_Added] = []

    @property
    def tokens(self) -> dict[int, str]:
        """Every token by its number."""
        vocab = self.model.vocab
        known = vocab.items() if isinstance(vocab, dict) else ((token, index) for index, (token, _) in enumerate(vocab))
        return {index: token for token, index in known} | {added.id: added.content for added in self.added_tokens}

    @property
    def special(self) -> set[int]:
        """Numbers of the special tokens."""
        return {added.id for added in self.added_tokens if added.special}


def check_vocabularies(base: Checkpoint, instruct: Checkpoint) -> None:
    """Check that a number means the same token in both models, except special tokens and those that one does not use.

    Models without a `tokenizer.json` are not compared.

    Raises:
        CheckpointError: if tokens differ, or a file is not that of a tokenizer.
    """
    if not all((each.path / TOKENIZER).is_file() for each in (base, instruct)):
        return
    one, other = _read(base), _read(instruct)
    theirs, special = other.tokens, one.special | other.special
    differing = [
        (index, token, theirs[index])
        for index, token in sorted(one.tokens.items())
        if index not in special and theirs.get(index, token) != token
    ]
    differing = [each for each in differing if not any(map(UNUSED.fullmatch, each[1:]))]
    if differing:
        examples = "; ".join(f"{index}: {token!r} and {other!r}" for index, token, other in differing[:SHOWN])
        raise CheckpointError(
            "the base and the instruct model have different vocabularies",
            got=f"{len(differing)} tokens differ, the base's first: {examples}",
            wanted="the same tokens, except special and unused ones",
            hint="use the instruct model that was tuned from this base model",
        )


def _read(checkpoint: Checkpoint) -> _Tokenizer:
    try:
        return _Tokenizer.model_validate(read_json(checkpoint.path / TOKENIZER))
    except ValidationError as err:
        raise CheckpointError(
            f"{TOKENIZER} does not have a vocabulary",
            got=f"{checkpoint.path / TOKENIZER}: {'; '.join(describe_invalid(err)[:3])}",
            wanted="a file of the tokenizers library",
        ) from err
