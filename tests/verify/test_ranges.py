"""The largest values inside a model: found at every boundary and inside every layer, and compared with float16's."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import CLASSES, FEATURES, TAGS, Recipe, with_weights
from tiers import LONG, slow
from torch import Tensor

from funnel_export import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.commands.check import compare
from funnel_export.report.text import describe_parity
from funnel_export.spec.funnel import boundary_names
from funnel_export.verify.boundaries import choose_case
from funnel_export.verify.cases import Case, plan_cases
from funnel_export.verify.parity_report import ParityReport
from funnel_export.verify.probe import RangeProbe
from funnel_export.verify.ranges import (
    FLOAT16_MAX,
    Range,
    describe_ranges,
    first_overflow,
    magnitude,
    share_of_float16,
)
from funnel_export.verify.reference import Eager

pytestmark = pytest.mark.filterwarnings("ignore:.*known to overflow in float16")

SOME = {"gemma2": Recipe(), "gemma3_text": Recipe(family="gemma3_text", funnel=None)}
"""Of the families in every run, with a funnel and without, as what is inside a layer depends on neither."""
FAMILIES = ("gemma2", "gemma3_text", *(pytest.param(name, marks=LONG) for name in ("gemma", "vaultgemma")))
DENSE = Recipe(funnel=None)
UNTIED = (("tie_word_embeddings", False),)


def ranges_of(bundle: Bundle, *cases: Case, dtype: torch.dtype = torch.float32) -> dict[str, Range]:
    """What the reference has on some batches, by name of the place."""
    probe = RangeProbe()
    model = Eager(bundle, dtype, probe)
    for case in cases:
        model.run(case.tokens(bundle.architecture, seed=0))
    model.close()
    return {found.name: found for found in probe.ranges()}


def scaled(recipe: Recipe, name: str, factor: float) -> Bundle:
    """A bundle with one weight that is larger than the recipe's."""
    return with_weights(recipe, lambda weights: weights[name].mul_(factor))


def loud_layer(recipe: Recipe) -> Bundle:
    """A bundle of Gemma2 whose layer 2 adds more to the hidden states than float16 holds."""

    def change(weights: dict[str, Tensor]) -> None:
        weights["model.layers.2.post_feedforward_layernorm.weight"][:] = 1e5

    return with_weights(recipe, change)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_at_boundaries_are_those_of_hugging_face(family: str) -> None:
    recipe = Recipe(funnel=None, family=family)
    bundle, case = recipe.bundle(), Case((9,))
    found = ranges_of(bundle, case)
    ids = torch.from_numpy(case.tokens(bundle.architecture, seed=0)[PortKind.TOKENS])
    with torch.no_grad():
        out = recipe.model(torch.float32)(input_ids=ids, output_hidden_states=True, use_cache=False)
    layers = boundary_names(bundle.segments)
    assert list(found) == ["embed_tokens", *layers, "norm", "lm_head"]
    before_last_layer = out.hidden_states[:-1]  # the last ones are normed
    for name, state in zip(["embed_tokens", *layers[:-1]], before_last_layer, strict=True):
        assert found[name].largest == float(state.abs().max()), name
    assert found["norm"].largest == float(out.hidden_states[-1].abs().max())
    assert all((found[name].inside is not None) is (name in layers) for name in found)


def test_values_at_the_boundaries_of_a_funnel() -> None:
    bundle, case = Recipe().bundle(), Case((9,))
    names = boundary_names(bundle.segments)
    assert {"funnel.pooled", "funnel.recovered"} < set(names)
    states = Eager(bundle, torch.float32).run(case.tokens(bundle.architecture, seed=0), names)
    found = ranges_of(bundle, case)
    assert list(found) == ["embed_tokens", *names, "norm", "lm_head"]
    assert {name: found[name].largest for name in names} == {name: np.abs(states[name]).max() for name in names}


@pytest.mark.parametrize(
    ("recipe", "places"),
    [
        (TAGS, ["norm", "score"]),
        slow(FEATURES, ["norm"]),
        slow(CLASSES, ["norm", "score"]),
    ],
    ids=lambda value: str(value.task) if isinstance(value, Recipe) else "",
)
def test_every_task_has_its_head(recipe: Recipe, places: list[str]) -> None:
    bundle = recipe.bundle()
    assert list(ranges_of(bundle, Case((9,)))) == ["embed_tokens", *boundary_names(bundle.segments), *places]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_inside_a_layer_are_seen(family: str) -> None:
    """The result of a matrix product that is the result of no module. Gemma 3's norms keep its queries small."""
    recipe = SOME.get(family, Recipe(family=family))
    found = ranges_of(scaled(recipe, "model.layers.1.self_attn.q_proj.weight", 1e4), Case((9,)))
    first = next(each for each in found.values() if not each.fits_float16)
    assert first.name == "layers.1"
    assert first.largest < FLOAT16_MAX < first.largest_inside
    normed = family == "gemma3_text"
    assert first.inside == ("self_attn.q_proj" if normed else "matmul in self_attn")


@pytest.mark.parametrize(("family", "passed"), [("gemma", False), ("gemma2", True)])
def test_a_softcap_makes_scores_beyond_the_range_harmless(family: str, passed: bool) -> None:
    bundle = scaled(Recipe(family=family, dtype="float16"), "model.layers.1.self_attn.q_proj.weight", 3e3)
    report = compare(bundle, targets=["onnxruntime"], max_length=6)
    first = first_overflow(report.ranges)
    assert first is not None
    assert (first.name, first.inside) == ("layers.1", "matmul in self_attn")
    assert report.passed is passed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("module", "inside"),
    [
        ("self_attn.v_proj", {"self_attn.v_proj", "self_attn.o_proj"}),
        ("mlp.gate_proj", {"mlp.down_proj"}),
        ("mlp.down_proj", {"mlp.down_proj"}),
    ],
)
def test_the_largest_value_inside_a_layer_is_seen(family: str, module: str, inside: set[str]) -> None:
    recipe = SOME.get(family, Recipe(family=family))
    found = ranges_of(scaled(recipe, f"model.layers.1.{module}.weight", 1e6), Case((9,)))
    assert found["layers.0"].fits_float16
    assert not found["layers.1"].fits_float16
    assert found["layers.1"].inside in inside
    behind_a_norm = family in ("gemma2", "gemma3_text")
    assert (found["layers.1"].largest < FLOAT16_MAX) is behind_a_norm


def test_a_sum_that_the_end_of_the_layer_takes_back_is_seen() -> None:
    """The hidden states between attention and MLP are the result of no module."""

    def change(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.post_attention_layernorm.weight"][:] = 1e5
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
            weights[f"model.layers.2.{norm}.weight"][:] = -1.0

    found = ranges_of(with_weights(DENSE, change), Case((9,)))
    assert found["layers.1"].inside in ("input of pre_feedforward_layernorm", "post_attention_layernorm")
    assert found["layers.2"].inside == "input of pre_feedforward_layernorm"
    assert found["layers.2"].largest_inside == pytest.approx(found["layers.1"].largest)


def test_what_a_layer_takes_is_not_inside_it() -> None:
    """The hidden states before a layer belong to the boundary before it."""
    found = ranges_of(scaled(DENSE, "model.embed_tokens.weight", 1e6), Case((9,)))
    assert found["layers.0"].largest > FLOAT16_MAX
    assert "input of input_layernorm" not in {each.inside for each in found.values()}
    assert found["layers.0"].largest_inside < found["layers.0"].largest


@pytest.mark.parametrize("recipe", [Recipe(), DENSE], ids=["funnel", "dense"])
def test_a_model_that_overflows_passes_in_float32_and_fails_in_float16(recipe: Recipe) -> None:
    report = compare(loud_layer(recipe), targets=["onnxruntime"], max_length=6)
    assert report.passed
    first = first_overflow(report.ranges)
    assert first is not None
    assert first.name == "layers.2"
    assert first.largest > 9e4
    text = describe_parity(report)
    assert "float16 (at most 65,504) overflows from layers.2 on" in text
    assert f"largest value: {magnitude(max(each.peak for each in report.ranges))} at " in text
    narrow = compare(loud_layer(replace(recipe, dtype="float16")), targets=["onnxruntime"], max_length=6)
    assert not narrow.passed
    place = next(each for each in narrow.ranges if each.name == "layers.2")
    assert narrow.targets[0].error == (
        f"eager PyTorch itself is not finite in float16 from layers.2 on, where float32 has {magnitude(place.peak)} "
        "and float16 at most 65,504, so no limit can be derived from it; export in bfloat16"
    )


def test_a_layer_that_overflows_only_inside_fails_in_float16() -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    report = compare(scaled(Recipe(), name, 1e6), targets=["onnxruntime"], max_length=6)
    first = first_overflow(report.ranges)
    assert report.passed
    assert first is not None
    assert (first.name, first.inside) == ("layers.2", "mlp.down_proj")
    assert first.largest < FLOAT16_MAX
    assert "layers.2 (mlp.down_proj); float16 (at most 65,504) overflows from layers.2 on" in describe_parity(report)
    (result,) = compare(scaled(Recipe(dtype="float16"), name, 1e6), targets=["onnxruntime"], max_length=6).targets
    assert "not finite in float16 from layers.2 on, where float32 has " in str(result.error)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_small_model_does_not_overflow(dtype: str) -> None:
    report = compare(Recipe(dtype=dtype).bundle(), targets=["openvino"], max_length=6)
    assert report.passed
    assert first_overflow(report.ranges) is None
    assert max(each.peak for each in report.ranges) < 1000
    text = describe_parity(report)
    assert "of float16's largest, 65,504" in text
    assert "overflows" not in text


def test_a_value_of_one_short_batch_is_seen() -> None:
    """It is in no batch whose boundaries are shown. Without that batch, nothing overflows."""
    recipe = Recipe(dtype="float16", overrides=UNTIED)
    bundle = recipe.bundle()
    plan = plan_cases(recipe.funnel, bundle.family.windows(bundle.architecture))
    shown = choose_case(plan.cases)
    assert shown is not None
    tokens = [case.tokens(bundle.architecture, seed=0)[PortKind.TOKENS] for case in plan.cases]
    short = plan.cases.index(Case((1,)))
    (token,) = tokens[short].flat
    others = [case for case, ids in zip(plan.cases, tokens, strict=True) if token not in ids]
    assert plan.cases[shown] in others

    def enlarge(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][token] *= 1e5

    assert first_overflow([*ranges_of(with_weights(recipe, enlarge), *others).values()]) is None
    report = compare(with_weights(recipe, enlarge), targets=["onnxruntime"])
    first = first_overflow(report.ranges)
    assert first is not None
    assert first.name == "embed_tokens"
    (result,) = report.targets
    assert "not finite in float16 from embed_tokens on, where float32 has " in str(result.error)


def test_a_large_bos_token_is_seen() -> None:
    """As in Gemma 3, where only the hidden states of BOS are beyond float16's range."""
    recipe = Recipe(dtype="float16", overrides=UNTIED)
    bos = recipe.bundle().architecture.bos_token_id

    def enlarge(weights: dict[str, Tensor]) -> None:
        weights["model.embed_tokens.weight"][bos] *= 1e5

    report = compare(with_weights(recipe, enlarge), targets=["onnxruntime"], max_length=3)
    assert not report.passed
    assert "not finite in float16 from embed_tokens on" in str(report.targets[0].error)


def test_values_that_are_not_finite() -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan

    found = ranges_of(with_weights(DENSE, spoil), Case((3,)))
    assert found["layers.0"].fits_float16
    assert found["layers.1"].largest == found["layers.3"].largest == math.inf
    assert "largest value: not finite at layers.1" in describe_ranges([*found.values()])
    stored = json.loads(found["layers.1"].model_dump_json())
    assert stored["largest"] == "Infinity"
    assert Range.model_validate(stored) == found["layers.1"]


def test_reports_of_earlier_versions_are_read() -> None:
    report = compare(Recipe().bundle(), targets=["onnxruntime"], max_length=2)
    earlier = json.loads(report.model_dump_json(exclude={"ranges"}))
    assert earlier.keys() < json.loads(report.model_dump_json()).keys()
    read = ParityReport.model_validate(earlier)
    assert read.ranges == []
    assert "largest value" not in describe_parity(read)
    assert "largest value" in describe_parity(report)


def test_a_probe_changes_nothing() -> None:
    bundle = DENSE.bundle()
    tokens = Case((9,)).tokens(bundle.architecture, seed=0)
    plain, probed = (Eager(bundle, torch.float64, probe).run(tokens)["logits"] for probe in (None, RangeProbe()))
    np.testing.assert_array_equal(plain, probed)


@pytest.mark.parametrize(
    ("largest", "inside", "fits", "place"),
    [
        (FLOAT16_MAX, 1.0, True, "layers.3"),
        (1.0, FLOAT16_MAX + 1, False, "layers.3 (mlp.down_proj)"),
        (65504.1, 1.0, False, "layers.3"),
        (math.inf, math.inf, False, "layers.3"),
    ],
)
def test_the_range_of_float16(largest: float, inside: float, fits: bool, place: str) -> None:
    found = Range(name="layers.3", largest=largest, inside="mlp.down_proj", largest_inside=inside)
    assert (found.fits_float16, found.place) == (fits, place)
    assert torch.finfo(torch.float16).max == FLOAT16_MAX


def test_numbers_are_readable() -> None:
    values = (0.0, 0.1234, 12.34, 123.4, 68407.2, 1.2e12, math.inf)
    assert [*map(magnitude, values)] == ["0", "0.123", "12.3", "123", "68,407", "1.2e+12", "not finite"]
    values = (0.0, 32752.0, 65503.0, 103821.0, 1e12, math.inf)
    assert [*map(share_of_float16, values)] == ["0.0 %", "50.0 %", "99.9 %", "158.4 %", "15,266,243 ×", "not finite"]
