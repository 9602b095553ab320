"""Saved caches: a later process goes on as if it had read the prompt, and takes no other file for one."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Recipe
from models import PAD
from safetensors.torch import load_file, save_file
from stepping import texts

from funnel_export import BundleError, FunnelModelForCausalLM, FunnelSpec
from funnel_export.runtime.saving import KEY
from funnel_export.spec.choices import Task

PAST = Task.TEXT_GENERATION_WITH_PAST
DENSE, FUNNEL = Recipe(task=PAST, funnel=None), Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"))
NARROW = Recipe(task=PAST, funnel=FUNNEL.funnel, dtype="bfloat16")
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": PAD, "eos_token_id": None, "do_sample": False}


@functools.cache
def model_of(recipe: Recipe, target: str = "openvino") -> FunnelModelForCausalLM:
    """A loaded bundle."""
    return FunnelModelForCausalLM.from_pretrained(recipe.bundle().path, target=target)


def saved(recipe: Recipe, path: Path) -> Path:
    """The saved cache of a text of 11 tokens, four windows of three but one token."""
    model = model_of(recipe)
    model.save_cache(model(torch.tensor(texts([11]))).past_key_values, path)
    return path


@pytest.mark.parametrize("recipe", [DENSE, FUNNEL, NARROW], ids=["dense", "funnel", "bfloat16"])
def test_a_loaded_cache_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """The text has 11 cached tokens and 4 new ones; the windows are shorter than it."""
    ids = torch.tensor(texts([11]))
    more = torch.cat([ids, torch.tensor(texts([4], seed=1))], dim=1)
    model = model_of(recipe)
    cache = model.load_cache(saved(recipe, tmp_path / "prompt.safetensors"))
    assert cache.get_seq_length() == 11
    found = model.generate(more, past_key_values=cache, **OPTIONS)
    assert torch.equal(found, model.generate(more, **OPTIONS))


def test_rows_with_padding_and_another_runtime(tmp_path: Path) -> None:
    """A cache belongs to the bundle, and not to the runtime that filled it."""
    rows = texts([3, 7, 12])
    ids = torch.tensor([[PAD] * (12 - len(row)) + row for row in rows])
    mask = (ids != PAD).long()
    path = tmp_path / "prompt.safetensors"
    model = model_of(FUNNEL)
    model.save_cache(model(ids, attention_mask=mask).past_key_values, path)
    model.save_cache(model(ids, attention_mask=mask).past_key_values, path)  # in place of the first
    other = model_of(FUNNEL, "onnxruntime")
    cache = other.load_cache(path)
    assert cache.state.lengths.tolist() == [3, 7, 12]
    more = torch.tensor(texts([2, 2, 2], seed=1))
    whole = torch.cat([mask, torch.ones_like(more)], dim=1)
    found = other(more, attention_mask=whole, past_key_values=cache).logits
    wanted = other(torch.cat([ids, more], dim=1), attention_mask=whole).logits[:, -2:]
    assert torch.allclose(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompt.safetensors"]


def test_a_loaded_cache_does_not_need_its_file(tmp_path: Path) -> None:
    path = saved(FUNNEL, tmp_path / "prompt.safetensors")
    cache = model_of(FUNNEL).load_cache(path)
    before = {name: array.copy() for name, array in cache.state.arrays.items()}
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert all(np.array_equal(array, before[name]) for name, array in cache.state.arrays.items())


def test_a_cache_of_another_bundle_is_refused(tmp_path: Path) -> None:
    path = saved(FUNNEL, tmp_path / "prompt.safetensors")
    for other in (DENSE, Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3", recovery="add"))):
        with pytest.raises(BundleError, match="the saved cache was made from another bundle"):
            model_of(other).load_cache(path)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("lengths"), r"lengths \(0,\)"),
        (without("past_key_values.0.key"), "past_key_values.0.key None"),
        (without("hidden"), "hidden None"),
        (changed("past_key_values.3.value", lambda each: each[:, :, 1:]), r"past_key_values.3.value .*10"),
        (changed("changes", lambda each: each.double()), "changes .*float64"),
        (changed("lengths", lambda each: each + 1), r"rows of \[12\] tokens"),
        (changed("lengths", lambda each: each.float()), r"lengths \(1,\)"),
        (changed("real", lambda each: each.repeat(2, 1)), r"real \(2, 11\)"),
        (changed("real", lambda each: each.long()), r"real \(1, 11\)"),
    ],
)
def test_a_cache_that_does_not_fit_together_is_refused(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    path = saved(FUNNEL, tmp_path / "prompt.safetensors")
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    tensors = load_file(path)
    change(tensors)
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata)
    with pytest.raises(BundleError, match=rf"(?s)the saved cache is damaged.*{told}"):
        model_of(FUNNEL).load_cache(path)


def test_other_files_are_refused_and_not_replaced(tmp_path: Path) -> None:
    text, weights = tmp_path / "notes.txt", tmp_path / "weights.safetensors"
    text.write_text("mine")
    save_file({"a": torch.ones(2)}, weights)
    link = tmp_path / "link"
    link.symlink_to(text)
    model = model_of(FUNNEL)
    cache = model(torch.tensor(texts([5]))).past_key_values
    before = {path: path.read_bytes() for path in (text, weights)}
    for path in (text, weights, tmp_path / "missing"):
        with pytest.raises(BundleError, match="not a saved cache of this version"):
            model.load_cache(path)
    for path in (text, weights, link):
        with pytest.raises(BundleError, match="it was not replaced"):
            model.save_cache(cache, path)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(BundleError, match="the cache cannot be written"):
        model.save_cache(cache, text / "inside")


@pytest.mark.parametrize("metadata", ["{}", '{"schema_version": 1, "graph_digests": {}, "weights": []}', "x"])
def test_a_cache_of_another_version_is_refused(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    save_file({"a": torch.ones(2)}, path, {KEY: metadata})
    with pytest.raises(BundleError, match=r"(?s)not a saved cache of this version.*validation error"):
        model_of(FUNNEL).load_cache(path)
