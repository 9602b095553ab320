"""The reference: float64 throughout, and config.json read by Hugging Face, independently of the exporter."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import CLASSES, FEATURES, TAGS, Recipe
from freed import uncollected, watch_weights
from models import true_float64
from numpy.typing import NDArray
from tamper import rewrite_json
from tiers import slow

from funnel_export import Quantization, export
from funnel_export.bundle.ports import PortKind
from funnel_export.commands.check import compare
from funnel_export.errors import BundleError, CheckpointError
from funnel_export.families.gemma2 import Gemma2
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import layer_name
from funnel_export.verify import reference
from funnel_export.verify.cases import Case
from funnel_export.verify.probe import RangeProbe
from funnel_export.verify.reference import Eager

pytestmark = pytest.mark.references

OTHERS = [Recipe(family=family) for family in ("gemma", "gemma3_text", "vaultgemma")]


def logits(recipe: Recipe) -> NDArray[Any]:
    """Logits of a float64 reference for a text longer than the sliding window."""
    bundle = recipe.bundle()
    model = Eager(bundle, torch.float64)
    return model.run(Case((29,)).tokens(bundle.architecture, seed=0))["logits"]


def test_a_dense_reference_equals_hugging_face() -> None:
    recipe = Recipe(funnel=None)
    architecture = recipe.bundle().architecture
    with true_float64(), torch.no_grad():
        ids = torch.from_numpy(Case((29,)).tokens(architecture, seed=0)[PortKind.TOKENS])
        wanted = recipe.model(torch.float64)(input_ids=ids, use_cache=False).logits[0].numpy()
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(logits(recipe), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        (Recipe(), None),
        (Recipe(funnel=None), None),
        (Recipe(quantization=Quantization(bits=8)), 16),
        *(slow(recipe, None) for recipe in (CLASSES, TAGS, FEATURES, *OTHERS)),
    ],
    ids=lambda value: "" if isinstance(value, Recipe) else "rounded activations" if value else "",
)
def test_closing_frees_the_weights_at_once(recipe: Recipe, group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = recipe.bundle()
    weights = watch_weights(monkeypatch, reference)
    with uncollected():
        model = Eager(bundle, torch.float64, RangeProbe(), group=group)
        model.run(Case((5,)).tokens(bundle.architecture, seed=0), [layer_name(0)])
        model.close()
        assert {weight() for weight in weights} == {None}


@contextlib.contextmanager
def without_float64() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "computing_in", lambda _: contextlib.nullcontext())
        yield


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(funnel=None)], ids=["funnel", "dense"])
def test_nothing_is_computed_in_float32(recipe: Recipe) -> None:
    found = logits(recipe)
    with without_float64():
        rounded = logits(recipe)
        with true_float64():
            exact = logits(recipe)
    scale = np.abs(exact).max()
    assert np.abs(found - exact).max() < 1e-13 * scale
    assert np.abs(rounded - exact).max() > 1e-8 * scale, "without Float64, parts are computed in float32"


def test_a_config_key_that_the_exporter_drops_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(funnel=None, overrides=(("rms_norm_eps", 0.1),))
    read = Gemma2.read_config

    def forgetful(self: Gemma2, config: Mapping[str, Any]) -> Any:
        return read(self, {key: value for key, value in config.items() if key != "rms_norm_eps"})

    monkeypatch.setattr(Gemma2, "read_config", forgetful)
    bundle = export(recipe.checkpoint(), tmp_path / "bundle", funnel=None, task="text-generation")
    report = compare(bundle, targets=["onnxruntime"], max_length=3)
    assert not report.passed
    assert report.targets[0].first_difference is not None
    assert report.targets[0].first_difference.name == "layers.0"
    monkeypatch.undo()
    assert compare(recipe.bundle(), targets=["onnxruntime"], max_length=3).passed


def test_a_model_that_hugging_face_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such mask")

    monkeypatch.setattr("transformers.models.gemma2.modeling_gemma2.Gemma2Model.forward", fail)
    with pytest.raises(BundleError, match=r"(?s)eager PyTorch cannot run this bundle.*ValueError: no such mask"):
        compare(Recipe(funnel=None).bundle(), targets=["onnxruntime"], max_length=2)


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        slow(Task.TEXT_GENERATION, (("pad_token_id", -1),)),
        (Task.TEXT_CLASSIFICATION, (("id2label", {"0": 0, "1": 1.5, "2": "two"}),)),
    ],
    ids=["no padding token", "numbers as labels"],
)
def test_unusual_configs_that_hugging_face_accepts(
    task: Task, overrides: tuple[tuple[str, Any], ...], tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(Recipe(task=task).checkpoint(), tmp_path / "checkpoint")
    rewrite_json(checkpoint / "config.json", lambda config: config.update(overrides))
    bundle = export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task=task)
    assert compare(bundle, targets=["onnxruntime"], max_length=9).passed


def test_text_classification_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(Recipe(task=Task.TEXT_CLASSIFICATION).checkpoint(), tmp_path / "checkpoint")
    rewrite_json(checkpoint / "config.json", lambda config: config.update(pad_token_id=-1))
    with pytest.raises(CheckpointError, match="pad_token_id -1"):
        export(checkpoint, tmp_path / "bundle", funnel=None)
