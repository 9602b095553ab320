"""Each check in `properties` passes on a correct model and fails on the same model after it is broken on purpose."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from models import base_of, random_rows, tiny_model
from properties import (
    alone,
    assert_close,
    check_causal,
    check_chunks,
    check_generation,
    check_horizon,
    check_padding,
    check_reach,
    check_rows,
    forward_of,
    funnelled,
    lengths_around,
    oracle_of,
)
from transformers import Gemma2ForCausalLM, Gemma2ForSequenceClassification, Gemma2Model, PreTrainedModel

from funnel_export import FunnelSpec
from funnel_export.funnel import FunnelCache, apply_funnel, model, pooling, remove_funnel
from funnel_export.funnel.maps import maps_of
from funnel_export.spec.choices import Pooling, Recovery, SlotPositions

pytestmark = pytest.mark.usefixtures("exact")

Break = Callable[[PreTrainedModel, pytest.MonkeyPatch], None]
Check = Callable[[], None]
SPEC = FunnelSpec(pool_layer=1, recover_layer=3, stride=3)
ROWS = random_rows(lengths_around(3))


# Checks of a correct model: the expected values are computed before the model is broken.


def equals_oracle(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    wants = {len(row): oracle_of(sound, spec)(row) for row in ROWS}
    return lambda: check_rows(forward_of(sound), lambda row: wants[len(row)], ROWS)


def equals_dense(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    dense = forward_of(tiny_model(type(sound)))
    return lambda: check_rows(forward_of(sound), alone(dense), ROWS)


def is_causal(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    return lambda: check_causal(forward_of(sound), random_rows([3 * spec.stride + 2])[0])


def sees_its_window(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    later = spec.stride - 1 if spec.lookahead else 0
    return lambda: check_horizon(forward_of(sound), random_rows([3 * spec.stride + 2])[0], later)


def is_the_same_everywhere(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    return lambda: check_padding(forward_of(sound), ROWS)


def chunks_add_up(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    return lambda: check_chunks(sound, ROWS, [2, 3, 4, 7, 9, 10])


def generates_the_same(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    return lambda: check_generation(sound, random_rows([5, 8, 9]), num_beams=3)


def slides_over_tokens(sound: PreTrainedModel, spec: FunnelSpec) -> Check:
    """Middle layer 2 of `SPEC` slides; alone, the last of ten tokens sees the slots at positions 9 and 6 but not 3."""
    seen = {0: {0}, 1: {0, 1, 2, 3}, 2: {*range(1, 7)}, 3: {*range(4, 10)}}
    return lambda: check_reach(forward_of(sound), random_rows([10])[0], lambda p, q: q in seen[p // 3])


# Ways to break a model in place.


def refit(broken: PreTrainedModel, patch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Replace the funnel by another one."""
    spec = FunnelSpec.from_dict(broken.config.funnel)
    apply_funnel(remove_funnel(broken), replace(spec, **changes))


def no_attention_cap(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    for layer in base_of(broken).layers:
        layer.self_attn.attn_logit_softcapping = None


def no_final_cap(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    broken.config.final_logit_softcapping = None


def inverted_layer_types(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    base_of(broken).config.layer_types = ["full_attention", "sliding_attention"] * 2


def no_mask(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """Padding counts as tokens."""
    base = base_of(broken)
    forward = base.forward
    patch.setattr(base, "forward", lambda *args, **kwargs: forward(*args, **(kwargs | {"attention_mask": None})))


def shift_read_out(by: int, broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    sound = model.read_slots
    patch.setattr(model, "read_slots", lambda *args: (sound(*args) + by).clamp(min=0))


def shift_windows(by: int, broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    sound = pooling.window_tokens
    patch.setattr(pooling, "window_tokens", lambda *args: sound(*args) + by)


def rows_in_step(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """Every row closes as many windows as the longest row."""
    sound = model.closed_slots

    def longest(length: Any, stride: int) -> Any:
        closed = sound(length, stride)
        return closed.max().expand_as(closed) if isinstance(closed, torch.Tensor) else closed

    patch.setattr(model, "closed_slots", longest)


def forget(state: str, broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """The cache does not store one part of its state."""
    patch.setattr(FunnelCache, state, property(lambda *_: None, lambda *_: None), raising=False)


def never_renew(state: str, broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """The cache never updates one part of its state."""
    values: list[Any] = []
    first = property(lambda _: next((v for v in values if v is not None), None), lambda _, value: values.append(value))
    patch.setattr(FunnelCache, state, first, raising=False)


def beams_stay(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """The state of open windows is not reordered with the beams."""
    patch.setattr(FunnelCache, "_map_rows", lambda *_: None)


def swapped_maps(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """Tokens that close their window get the map of the others, and these that of the first."""
    maps: Any = maps_of(base_of(broken))
    maps.closed, maps.stale = maps.stale, maps.closed


def a_map_for_every_token(broken: PreTrainedModel, patch: pytest.MonkeyPatch) -> None:
    """The first token is mapped too."""
    maps: Any = maps_of(base_of(broken))
    forward = maps.forward
    patch.setattr(maps, "forward", lambda x, *rest: forward(x, *rest[:-1], rest[-1] + 3))


@dataclass(frozen=True)
class Twin:
    """A correct model, a check, and a change that breaks the model."""

    check: Callable[[PreTrainedModel, FunnelSpec], Check]
    breaks: Break
    spec: FunnelSpec = SPEC
    cls: type[PreTrainedModel] = Gemma2Model
    overrides: dict[str, Any] = field(default_factory=dict)


AHEAD = replace(SPEC, lookahead=True)
LINEAR = replace(SPEC, recovery=Recovery.LINEAR)
DROPPED = FunnelSpec.parse("1:3:drop", recovery=Recovery.LINEAR)
IDENTITY = replace(SPEC, stride=1)
LAST = replace(SPEC, recovery=Recovery.REPLACE, pool_layer=0, recover_layer=1)
ONE_LAYER = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}

TWINS = {
    "oracle: attention cap off": Twin(equals_oracle, no_attention_cap),
    "oracle: final cap off": Twin(equals_oracle, no_final_cap, cls=Gemma2ForCausalLM),
    "oracle: inverted layer types": Twin(equals_oracle, inverted_layer_types),
    "oracle: stride off by one": Twin(equals_oracle, partial(refit, stride=2)),
    "oracle: pools a layer later": Twin(equals_oracle, partial(refit, pool_layer=2)),
    "oracle: recovers a layer later": Twin(equals_oracle, partial(refit, recover_layer=4)),
    "oracle: max instead of mean": Twin(equals_oracle, partial(refit, pooling=Pooling.MAX)),
    "oracle: last instead of first": Twin(
        equals_oracle, partial(refit, pooling=Pooling.LAST), spec=replace(SPEC, pooling=Pooling.FIRST)
    ),
    "oracle: add instead of delta": Twin(equals_oracle, partial(refit, recovery=Recovery.ADD)),
    "oracle: average instead of replace": Twin(
        equals_oracle, partial(refit, recovery=Recovery.AVERAGE), spec=replace(SPEC, recovery=Recovery.REPLACE)
    ),
    "oracle: compact positions": Twin(equals_oracle, partial(refit, slot_positions=SlotPositions.COMPACT)),
    "oracle: lookahead": Twin(equals_oracle, partial(refit, lookahead=True)),
    "oracle: reads a slot too early": Twin(equals_oracle, partial(shift_read_out, -1)),
    "oracle: windows shifted back": Twin(equals_oracle, partial(shift_windows, -1)),
    "oracle, lookahead: reads a slot too early": Twin(equals_oracle, partial(shift_read_out, -1), spec=AHEAD),
    "oracle: closed and stale tokens swapped": Twin(equals_oracle, swapped_maps, spec=LINEAR),
    "oracle: the first token is mapped": Twin(equals_oracle, a_map_for_every_token, spec=LINEAR),
    "oracle, drop: the first token is like the rest": Twin(equals_oracle, a_map_for_every_token, spec=DROPPED),
    "dense: attention cap off": Twin(equals_dense, no_attention_cap, spec=IDENTITY),
    "dense: inverted layer types": Twin(equals_dense, inverted_layer_types, spec=IDENTITY),
    "dense: add instead of delta": Twin(equals_dense, partial(refit, recovery=Recovery.ADD), spec=IDENTITY),
    "dense: stride off by one": Twin(equals_dense, partial(refit, stride=2), spec=IDENTITY),
    "dense: reads a slot too early": Twin(equals_dense, partial(shift_read_out, -1), spec=IDENTITY),
    "causal: lookahead": Twin(is_causal, partial(refit, lookahead=True)),
    "causal: reads a slot too late": Twin(is_causal, partial(shift_read_out, 1)),
    "causal: windows shifted on": Twin(is_causal, partial(shift_windows, 1)),
    "horizon: no lookahead": Twin(sees_its_window, partial(refit, lookahead=False), spec=AHEAD),
    "horizon: stride off by one": Twin(sees_its_window, partial(refit, stride=4), spec=AHEAD),
    "horizon: windows shifted on": Twin(sees_its_window, partial(shift_windows, 1)),
    "padding counts as tokens": Twin(is_the_same_everywhere, no_mask),
    "padding counts as tokens, one score a text": Twin(
        is_the_same_everywhere, no_mask, cls=Gemma2ForSequenceClassification
    ),
    "chunks: window forgotten": Twin(chunks_add_up, partial(forget, "open")),
    "chunks: last slot not renewed": Twin(chunks_add_up, partial(never_renew, "middle")),
    "chunks: rows in step": Twin(chunks_add_up, rows_in_step),
    "generation: beams keep their windows": Twin(generates_the_same, beams_stay, cls=Gemma2ForCausalLM),
    "generation: window forgotten": Twin(generates_the_same, partial(forget, "open"), cls=Gemma2ForCausalLM),
    "sliding window counted in slots": Twin(
        slides_over_tokens, partial(refit, slot_positions=SlotPositions.COMPACT), spec=LAST, overrides=ONE_LAYER
    ),
    "sliding window everywhere": Twin(slides_over_tokens, inverted_layer_types, spec=LAST, overrides=ONE_LAYER),
}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS.keys())
def test_check_refuses_broken_twin(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    model = funnelled(twin.cls, twin.spec, **twin.overrides)
    check = twin.check(model, twin.spec)
    check()
    twin.breaks(model, monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_comparison_refuses_nan_and_other_shapes() -> None:
    one = torch.ones(2, 3)
    assert_close(one, one.clone(), 0.0, "the same")
    with pytest.raises(AssertionError, match="differs by nan"):
        assert_close(one, torch.full((2, 3), torch.nan), 1e9, "not a number")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(one, torch.ones(1, 3), 0.0, "would broadcast")
