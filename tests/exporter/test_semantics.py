"""Exported graphs in ONNX Runtime and OpenVINO have the properties of a funnel and match the oracle."""

import functools
from collections.abc import Callable

import pytest
import torch
from exported import ALL_LAYERS, CLASSES, COMPACT, FEATURES, TAGS, Forward, Recipe, float32_limit, forward_of_bundle
from models import main_output, make_batch, random_rows
from properties import (
    Row,
    alone,
    assert_close,
    check_causal,
    check_padding,
    check_rows,
    forward_of,
    lengths_around,
    oracle_of,
)
from tiers import slow_but
from torch import Tensor

from funnel_export import FunnelSpec
from funnel_export.funnel import apply_funnel
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import LARGEST_STRIDE

RECIPES = {
    "dense": Recipe(funnel=None),
    "S=1 delta": Recipe(funnel=FunnelSpec.parse("1:3:1"), opset=22),
    "S=1 replace, all layers": Recipe(funnel=FunnelSpec.parse("0:4:1", recovery="replace")),
    "S=2 mean delta": Recipe(),
    "S=3 max add compact": COMPACT,
    "S=4 first average": Recipe(funnel=FunnelSpec.parse("1:4:4", pooling="first", recovery="average")),
    "S=2 linear": Recipe(funnel=FunnelSpec.parse("1:3:2", recovery="linear")),
    "drop": Recipe(funnel=FunnelSpec.parse("1:3:drop")),
    "drop linear": Recipe(funnel=FunnelSpec.parse("2:4:drop", recovery="linear"), stored=torch.bfloat16),
    "features S=2 last replace": FEATURES,
    "tagging S=3 mean lookahead": TAGS,
    "classes S=2 max lookahead": CLASSES,
}
QUICK = [name for name in RECIPES if name not in ("S=1 replace, all layers", "S=4 first average", "drop")]
"""Other tests of exports share most of them."""


EXTREMES = {
    "largest stride": Recipe(
        task=Task.TOKEN_CLASSIFICATION,
        funnel=FunnelSpec(pool_layer=1, recover_layer=3, stride=LARGEST_STRIDE, lookahead=True),
        overrides=(("hidden_size", 8),),  # few numbers for each of the million tokens of a window
    ),
    "all layers": ALL_LAYERS,
    "no entry": RECIPES["S=3 max add compact"],
    "no exit": RECIPES["S=4 first average"],
    "stride 1": RECIPES["S=1 delta"],
    "stride 1, all layers": RECIPES["S=1 replace, all layers"],
}


def stride(recipe: Recipe) -> int:
    return recipe.funnel.stride if recipe.funnel else 2


def expected(recipe: Recipe) -> Callable[[Row], Tensor]:
    """What the oracle says of a recipe's checkpoint and funnel; maps come with the funnel."""
    model = recipe.model()
    return oracle_of(model if recipe.funnel is None else apply_funnel(model, recipe.funnel), recipe.funnel)


@functools.cache
def forward_of_recipe(name: str, target: str = "onnxruntime") -> Forward:
    """A recipe's graph as a forward, loaded once."""
    return forward_of_bundle(RECIPES[name].bundle(), target)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", slow_but(QUICK, RECIPES))
def test_equals_the_oracle(name: str, target: str) -> None:
    recipe = RECIPES[name]
    run = forward_of_recipe(name, target)
    rows = random_rows(lengths_around(stride(recipe)))
    check_rows(run, expected(recipe), rows, float32_limit(run, rows))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", slow_but(QUICK, RECIPES))
def test_padding_and_other_rows_change_nothing(name: str, target: str) -> None:
    recipe = RECIPES[name]
    run = forward_of_recipe(name, target)
    rows = random_rows([stride(recipe) + 1, 1, 14, 7], seed=1)
    check_padding(run, rows, float32_limit(run, rows))


@pytest.mark.parametrize("name", ["dense", "S=2 mean delta", "S=3 max add compact", "features S=2 last replace"])
def test_causal(name: str) -> None:
    check_causal(forward_of_recipe(name), random_rows([13], seed=2)[0])


@pytest.mark.parametrize("name", slow_but(QUICK, ("dense", "S=1 delta", "S=1 replace, all layers")))
def test_dense_and_stride_one_equal_hugging_face(name: str) -> None:
    recipe = RECIPES[name]
    run, model = forward_of_recipe(name), recipe.model(torch.float32)
    rows = random_rows(lengths_around(3), seed=3)
    with torch.no_grad():
        check_rows(run, lambda row: main_output(model(torch.tensor([row])))[0], rows, float32_limit(run, rows))


@pytest.mark.parametrize("name", slow_but(("all layers", "no entry", "stride 1"), EXTREMES))
def test_extremes_equal_eager_and_the_oracle(name: str) -> None:
    recipe = EXTREMES[name]
    run, eager = (
        forward_of_bundle(recipe.bundle()),
        forward_of(apply_funnel(recipe.model(torch.float32), recipe.funnel)),
    )
    rows = random_rows([1, 13], seed=4)
    within = float32_limit(run, rows)
    check_rows(run, alone(eager), rows, within)
    check_rows(run, expected(recipe), rows, within)
    batch = make_batch(rows, "left", extra=1)
    got, want = (batch.real(forward(batch.input_ids, batch.attention_mask)) for forward in (run, eager))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, within, "padded")
