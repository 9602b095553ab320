"""Tokenizers of a bundle give the tokens that the checkpoint's give, whatever version wrote their settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import Recipe
from hypothesis import given
from hypothesis import strategies as st
from tamper import rewrite_json
from tokenizers import Tokenizer
from tokenizers_of_words import save_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from funnel_export import export, load_bundle
from funnel_export.checkpoint.tokenizer import SETTINGS, readable_by_all
from funnel_export.commands.demo import make_tokenizer

EXTRA = ["<tool>", "<image>"]
PIECES = st.sampled_from([*EXTRA, "<bos>", "<eos>", "The with statement", " ", "\n", "\t", "▁"]) | st.text(max_size=8)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tokenizer without a class of its own as transformers saves it, and as a bundle has it."""
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    saved = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer, extra_special_tokens=EXTRA, **special
    )
    folders: list[Path] = [tmp_path_factory.mktemp(name) for name in ("checkpoint", "bundle")]
    for folder in folders:
        saved.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "gemma2"}')
    before = (folders[1] / SETTINGS).read_bytes()
    assert b'"TokenizersBackend"' in before
    assert b'"extra_special_tokens"' in before
    (folders[1] / SETTINGS).write_bytes(readable_by_all(before))
    return tuple(map(AutoTokenizer.from_pretrained, folders))


@given(st.lists(PIECES, max_size=8).map("".join))
def test_tokens_are_the_same(both: tuple[Any, Any], text: str) -> None:
    saved, renamed = both
    assert renamed(text).data == saved(text).data
    ids = saved(text)["input_ids"]
    assert renamed.decode(ids, skip_special_tokens=True) == saved.decode(ids, skip_special_tokens=True)


def test_special_tokens_are_the_same(both: tuple[Any, Any]) -> None:
    saved, renamed = both
    assert set(EXTRA) <= set(renamed.all_special_tokens)
    assert renamed.special_tokens_map == saved.special_tokens_map
    assert renamed.all_special_tokens == saved.all_special_tokens


@pytest.mark.parametrize(
    ("settings", "renamed"),
    [
        (b'{"tokenizer_class" :\n"TokenizersBackend"}', b'{"tokenizer_class" :\n"PreTrainedTokenizerFast"}'),
        (b'{"extra_special_tokens": ["<a>"] }\r\n', b'{"additional_special_tokens": ["<a>"] }\r\n'),
    ],
)
def test_only_names_change(settings: bytes, renamed: bytes) -> None:
    assert readable_by_all(settings) == renamed
    assert readable_by_all(renamed) == renamed


@pytest.mark.parametrize(
    "settings",
    [
        b'{"tokenizer_class":"GemmaTokenizer", "model_max_length":1000000000000000019884624838656}\r\n',
        b'{"extra_special_tokens": {"image_token": "<image>"}}',
        b'{"additional_special_tokens": ["<a>"], "extra_special_tokens": ["<b>"]}',
        json.dumps(
            {"chat_template": '"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]'}
        ).encode(),
        b"not JSON: \xff",
    ],
)
def test_everything_else_stays(settings: bytes) -> None:
    assert readable_by_all(settings) == settings


def longest(folder: Path) -> int:
    """The largest number of tokens that a tokenizer's settings allow."""
    return int(json.loads((folder / SETTINGS).read_bytes())["model_max_length"])


def read_as_fastembed(folder: Path) -> Tokenizer:
    """Load a tokenizer as fastembed does: with what its settings say, as the length to cut texts to."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=longest(folder))
    return tokenizer


def test_the_largest_length_is_the_checkpoints_and_the_user_may_set_another(tmp_path: Path) -> None:
    """As docs/deploy.md says of fastembed: it fails on a length that stands for no limit."""
    checkpoint = shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")
    save_tokenizer(checkpoint)
    assert longest(checkpoint) > 10**29
    made = export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task="text-generation")
    assert longest(made.path) == longest(checkpoint)
    with pytest.raises(OverflowError):
        read_as_fastembed(made.path)
    rewrite_json(made.path / SETTINGS, lambda settings: settings.update(model_max_length=5))
    assert load_bundle(made.path).spec == made.spec
    assert len(read_as_fastembed(made.path).encode("w7 " * 9).ids) == 5
    again = export(made.path, tmp_path / "again", funnel="1:3:2", task="text-generation")
    assert longest(again.path) == 5
