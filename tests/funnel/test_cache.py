"""FunnelCache: its contents, and selecting, repeating and clearing its rows."""

from collections.abc import Callable

import pytest
import torch
from models import make_batch, random_rows, tiny_model
from properties import assert_close, funnelled
from transformers import DynamicCache, Gemma2ForCausalLM, Gemma2Model

from funnel_export import FunnelSpec
from funnel_export.errors import SpecError
from funnel_export.funnel import FunnelCache

SPEC = FunnelSpec(pool_layer=1, recover_layer=3, stride=3)
ROWS = random_rows([5, 8, 9])

CHOICES: dict[str, tuple[Callable[[FunnelCache], None], list[int]]] = {
    "reordered": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "reordered by int32": (lambda cache: cache.reorder_cache(torch.tensor([1, 2, 0], dtype=torch.int32)), [1, 2, 0]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "selected": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
}


@pytest.mark.parametrize(("choose", "rows"), CHOICES.values(), ids=CHOICES.keys())
def test_rows_of_the_cache_can_be_chosen(choose: Callable[[FunnelCache], None], rows: list[int]) -> None:
    """Rows with different open windows are reordered in the middle of a text; the outputs must not change."""
    model, batch = funnelled(Gemma2ForCausalLM, SPEC, dtype=torch.float32), make_batch(ROWS)
    ids, mask = batch.input_ids, batch.attention_mask
    want = model(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False).logits[:, 6:]
    cache = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
    choose(cache)
    steps = [
        model(input_ids=ids[rows, at : at + 1], attention_mask=mask[rows, : at + 1], past_key_values=cache).logits
        for at in range(6, 9)
    ]
    assert_close(torch.cat(steps, dim=1), want, 1e-4, "after the change")


def test_reset_cache_starts_another_text() -> None:
    model, ids = funnelled(Gemma2ForCausalLM, SPEC), torch.tensor([ROWS[1]])
    cache = model(input_ids=torch.tensor([ROWS[2]]), use_cache=True).past_key_values
    cache.reset()
    assert cache.get_seq_length() == 0
    want = model(input_ids=ids, use_cache=False).logits
    assert_close(model(input_ids=ids, past_key_values=cache).logits, want, 1e-5, "after a reset")


def test_middle_layers_cache_slots_only() -> None:
    model = funnelled(Gemma2ForCausalLM, FunnelSpec(pool_layer=1, recover_layer=3, stride=4))
    cache = model(input_ids=torch.tensor([ROWS[2]]), use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [9, 3, 3, 9]
    assert cache.get_seq_length() == 9


def test_middle_layers_run_only_when_a_window_closes() -> None:
    model, calls = funnelled(Gemma2Model, FunnelSpec(pool_layer=1, recover_layer=3, stride=4)), []
    model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    cache, runs = FunnelCache(), []
    for token in ROWS[2]:
        model(input_ids=torch.tensor([[token]]), past_key_values=cache)
        runs.append(len(calls))
    assert runs == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_an_empty_cache_of_another_class_is_replaced() -> None:
    model = funnelled(Gemma2ForCausalLM, SPEC)
    out = model(input_ids=torch.tensor([ROWS[0]]), past_key_values=DynamicCache(), use_cache=True)
    assert isinstance(out.past_key_values, FunnelCache)


def test_a_cache_that_does_not_fit_is_refused() -> None:
    model, ids = funnelled(Gemma2ForCausalLM, SPEC), torch.tensor([ROWS[0]])
    filled = tiny_model()(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(SpecError, match="filled by another model"):
        model(input_ids=ids, past_key_values=filled, use_cache=True)
    ahead = funnelled(Gemma2Model, FunnelSpec(pool_layer=1, recover_layer=2, stride=2, lookahead=True))
    with pytest.raises(SpecError, match="whole text"):
        ahead(input_ids=ids, past_key_values=FunnelCache(), use_cache=True)


def test_closed_windows_stay_closed() -> None:
    model = funnelled(Gemma2ForCausalLM, SPEC)
    cache = model(input_ids=torch.tensor([ROWS[0]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cropped"):
        cache.crop(1)
