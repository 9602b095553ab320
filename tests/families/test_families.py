"""Every family, in PyTorch: equal to Hugging Face, to the oracle, and to itself however a text is padded or cut."""

from typing import Any

import pytest
import torch
from models import OTHER_CLASSES, random_rows, tiny_model
from properties import (
    alone,
    check_causal,
    check_chunks,
    check_generation,
    check_horizon,
    check_padding,
    check_rows,
    forward_of,
    funnelled,
    lengths_around,
    oracle_of,
)
from transformers import (
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    GemmaForCausalLM,
    GemmaModel,
    PreTrainedModel,
    VaultGemmaForCausalLM,
)

from funnel_export import CheckpointError, FunnelSpec, SpecError, apply_funnel
from funnel_export.spec.choices import Recovery

pytestmark = pytest.mark.usefixtures("exact")

ROWS = random_rows(lengths_around(3))
SPECS = [
    FunnelSpec.parse("1:3:3"),
    FunnelSpec.parse("0:4:2", pooling="max", recovery="add", slot_positions="compact"),
]
BOTH_SIDES = {"use_bidirectional_attention": True}
LANGUAGE_MODELS = [GemmaForCausalLM, Gemma3ForCausalLM, VaultGemmaForCausalLM]


def named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("cls", OTHER_CLASSES, ids=named)
def test_a_model_is_what_the_oracle_says(cls: type[PreTrainedModel]) -> None:
    model = tiny_model(cls)
    check_rows(forward_of(model), oracle_of(model, None), ROWS)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("cls", OTHER_CLASSES, ids=named)
def test_a_funnel_is_what_the_oracle_says(cls: type[PreTrainedModel], spec: FunnelSpec) -> None:
    model = funnelled(cls, spec)
    check_rows(forward_of(model), oracle_of(model, spec), ROWS)


@pytest.mark.parametrize("recovery", [Recovery.DELTA, Recovery.REPLACE])
@pytest.mark.parametrize("cls", OTHER_CLASSES, ids=named)
def test_stride_one_is_the_unpatched_model(cls: type[PreTrainedModel], recovery: Recovery) -> None:
    dense = alone(forward_of(tiny_model(cls)))
    model = funnelled(cls, FunnelSpec.parse("1:3:1", recovery=recovery))
    check_rows(forward_of(model), dense, ROWS)


@pytest.mark.parametrize("cls", OTHER_CLASSES, ids=named)
def test_padding_changes_nothing(cls: type[PreTrainedModel]) -> None:
    check_padding(forward_of(funnelled(cls, SPECS[0])), ROWS)


@pytest.mark.parametrize("cls", LANGUAGE_MODELS, ids=named)
def test_no_token_sees_a_later_one(cls: type[PreTrainedModel]) -> None:
    check_causal(forward_of(funnelled(cls, SPECS[0])), random_rows([11])[0])


@pytest.mark.parametrize("cls", LANGUAGE_MODELS, ids=named)
def test_chunks_and_generation_equal_one_pass(cls: type[PreTrainedModel]) -> None:
    model = funnelled(cls, SPECS[0])
    check_chunks(model, ROWS, [2, 3, 4, 7, 9, 10])
    check_generation(model, random_rows([5, 8, 9]), num_beams=3)


@pytest.mark.parametrize("cls", [Gemma3TextModel, Gemma3TextForSequenceClassification], ids=named)
@pytest.mark.parametrize("stride", [None, 1, 3], ids=lambda s: f"S={s}")
def test_attention_to_both_sides(cls: type[PreTrainedModel], stride: int | None) -> None:
    """As EmbeddingGemma has it; with a funnel, every token reads the slot of its own window."""
    model = tiny_model(cls, **BOTH_SIDES)
    spec = None if stride is None else FunnelSpec(pool_layer=1, recover_layer=4, stride=stride, lookahead=True)
    if spec is not None:
        apply_funnel(model, spec)
    check_rows(forward_of(model), oracle_of(model, spec), ROWS)
    check_padding(forward_of(model), ROWS)
    if stride == 1:
        check_rows(forward_of(model), alone(forward_of(tiny_model(cls, **BOTH_SIDES))), ROWS)


def test_a_model_of_both_sides_sees_the_whole_text() -> None:
    model = funnelled(Gemma3TextModel, FunnelSpec.parse("1:4:3", lookahead=True), **BOTH_SIDES)
    check_horizon(forward_of(model), random_rows([11])[0], later_tokens=10)


def test_what_both_sides_refuse() -> None:
    spec = FunnelSpec.parse("1:3:2")
    with pytest.raises(SpecError, match="needs lookahead"):
        apply_funnel(tiny_model(Gemma3TextModel, **BOTH_SIDES), spec)
    with pytest.raises(CheckpointError, match="cannot generate text"):
        apply_funnel(tiny_model(Gemma3ForCausalLM, **BOTH_SIDES), spec)
    for cls in (GemmaModel, Gemma2Model):
        with pytest.raises(CheckpointError, match="bidirectional attention is not supported for Gemma"):
            apply_funnel(tiny_model(cls, **BOTH_SIDES), spec)
    model = funnelled(Gemma3TextModel, FunnelSpec.parse("1:3:2", lookahead=True), **BOTH_SIDES)
    cache = tiny_model(Gemma2ForCausalLM)(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    with pytest.raises(SpecError, match="needs the whole text at once"):
        model(torch.tensor([[3]]), past_key_values=cache)
