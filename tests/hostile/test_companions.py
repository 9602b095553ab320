"""Files that Hugging Face reads from a stranger's bundle: a tokenizer with code, a generation config of anything."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from exported import PAST, Recipe
from fuzz.watch import limit
from tokenizers_of_words import save_tokenizer

from funnel_export.errors import BundleError
from funnel_export.runtime.tokenizer import load_tokenizer


@pytest.mark.parametrize("family", ["gemma2", "vaultgemma"])
def test_no_code_of_a_tokenizer_is_run(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks at the terminal, where it knows no tokenizer of the family; a pipe may answer yes."""
    shutil.copy(Recipe(family=family).checkpoint() / "config.json", tmp_path)
    save_tokenizer(tmp_path)
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        load_tokenizer(tmp_path)
    except BundleError as err:
        assert "the tokenizer cannot be loaded" in str(err)  # noqa: PT017 - another version may load it
    assert not asked
    assert not (tmp_path / "ran").exists()


CONFIGS: dict[str, Any] = {
    "no object": [],
    "an end that is none": {"eos_token_id": {"a": 1}},
    "ends that are none": {"eos_token_id": ["a", [1]]},
    "many beams": {"num_beams": 1 << 20},
    "many texts": {"num_return_sequences": 1 << 20, "do_sample": True},
    "beams of several groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "a search that needs code of the Hub": {"penalty_alpha": 0.6, "top_k": 4},
    "layers that the runtime does not show": {"dola_layers": "high"},
    "strings to stop at": {"stop_strings": ["w5"]},
    "a draft from the prompt": {"prompt_lookup_num_tokens": 3},
    "a negative length": {"max_length": -5},
    "a long text": {"min_new_tokens": 1 << 40},
    "a static cache": {"cache_implementation": "static"},
    "a temperature that is none": {"temperature": "hot", "do_sample": True},
    "rubbish": {"do_sample": [], "top_k": {}, "x": 1},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_generation_config_of_anything(case: str, tmp_path: Path) -> None:
    """It is refused, or the text has one row; it takes neither gigabytes nor code."""
    bundle = shutil.copytree(PAST.bundle().path, tmp_path / "bundle")
    save_tokenizer(bundle)
    (bundle / "generation_config.json").write_text(json.dumps(CONFIGS[case]))
    with limit():
        done = run("generate", bundle, "--prompt", "w5 w6", "--max-new-tokens", 3, "--json")
    assert done.returncode in (0, 2), done.stderr
    if done.returncode == 2:
        assert done.stderr.startswith(("error: the bundle's generation_config.json", "error: Hugging Face's generate"))
    else:
        assert len(json.loads(done.stdout)["tokens"]) <= 3
