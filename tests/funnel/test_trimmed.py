"""A trimmed layer gives the chosen columns what the whole layer gives them, in passes and in steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import Side, make_batch, random_rows, tiny_model, with_random_maps
from numpy.typing import NDArray
from stepping import eager_stepper, texts, whole
from tiers import slow_but
from torch import Tensor
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM, GemmaForCausalLM, VaultGemmaForCausalLM

from funnel_export import FunnelSpec
from funnel_export.funnel import patch_forward, queries, stages
from funnel_export.funnel.gather import take_columns
from funnel_export.funnel.trimmed import ChunkKeys
from funnel_export.verify.float64 import Float64

EXACT = 1e-10
CLASSES = (GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, VaultGemmaForCausalLM)
FUNNELS = {
    "dense": None,
    "S=3": FunnelSpec.parse("1:3:3"),
    "S=3 to the end": FunnelSpec.parse("1:4:3"),
    "linear": FunnelSpec.parse("1:3:3", recovery="linear"),
    "drop": FunnelSpec.parse("1:3:drop"),
    "drop to the end": FunnelSpec.parse("2:4:drop", recovery="linear"),
}
ROWS = random_rows([1, 9, 17])


def last_logits(cls: Any, funnel: FunnelSpec | None, side: Side, *, last_only: bool) -> Tensor:
    """The logits of each row's last token, by a forward that computes all tokens or only those."""
    batch = make_batch(ROWS, side)
    with torch.no_grad(), Float64():
        model = tiny_model(cls)
        patch_forward(model, funnel, last_only=last_only)
        with_random_maps(model)
        logits: Tensor = model(batch.input_ids, batch.attention_mask, use_cache=False).logits
    return logits[:, 0] if last_only else torch.stack([row[-1] for row in batch.real(logits)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("funnel", FUNNELS.values(), ids=FUNNELS)
def test_a_pass_for_the_last_tokens(cls: Any, funnel: FunnelSpec | None, side: Side) -> None:
    wanted = last_logits(cls, funnel, side, last_only=False)
    assert float((last_logits(cls, funnel, side, last_only=True) - wanted).abs().max()) < EXACT


def test_a_cache_leaves_the_layer_whole() -> None:
    tokens = torch.tensor(random_rows([9, 9]))
    with torch.no_grad(), Float64():
        model: Any = tiny_model(Gemma2ForCausalLM)
        wanted = model(tokens, use_cache=False).logits[:, -1:]
        patch_forward(model, None, last_only=True)
        first = model(tokens[:, :5], use_cache=True)
        logits = model(tokens[:, 5:], past_key_values=first.past_key_values).logits
    assert float((logits - wanted).abs().max()) < EXACT


def chosen_logits(
    cls: Any, funnel: FunnelSpec | None, columns: NDArray[np.int64], **overrides: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits of columns of a second chunk, and those of the whole text at the same tokens."""
    rows = texts([26, 26], seed=4)
    wanted = whole(cls, funnel, rows, **overrides)
    stepper = eager_stepper(cls, funnel, **overrides)
    state, tokens = stepper.new_state(2), np.array(rows)
    stepper.step(state, tokens[:, :7], np.array([7, 5]))
    chunk = np.stack([row[begin : begin + 13] for row, begin in zip(tokens, (7, 5), strict=True)])
    found = stepper.step(state, chunk, columns=columns)
    places = zip(wanted, (7, 5), columns, strict=True)
    return found, np.stack([row[begin + chosen] for row, begin, chosen in places])


COLUMNS = {
    "last": [[12], [12]],
    "one of each row": [[3], [11]],
    "any order, some twice": [[12, 0, 5, 5], [1, 1, 12, 7]],
    "all": [[*range(13)]] * 2,
    "more than all": [[*range(13), *range(13)]] * 2,
}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("funnel", FUNNELS.values(), ids=FUNNELS)
@pytest.mark.parametrize("layers", slow_but((5,), (4, 5)), ids=["full attention", "sliding window"])
def test_a_step_for_chosen_columns(columns: list[list[int]], funnel: FunnelSpec | None, layers: int) -> None:
    found, wanted = chosen_logits(Gemma2ForCausalLM, funnel, np.array(columns), num_hidden_layers=layers)
    assert float(np.abs(found - wanted).max()) < EXACT


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_of_every_family(cls: Any) -> None:
    found, wanted = chosen_logits(cls, FUNNELS["S=3"], np.array(COLUMNS["any order, some twice"]))
    assert float(np.abs(found - wanted).max()) < EXACT


# Trimmed layers that are wrong on purpose. Each must be seen, or the tests above prove nothing.


def _one_column_off(x: Tensor, columns: Tensor) -> Tensor:
    return take_columns(x, columns - 1)


def _positions_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "take_columns", _one_column_off)


def _states_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "take_columns", _one_column_off)


def _keys_of_chosen_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer sees the last keys that it made, those of the chosen columns."""

    def update(self: ChunkKeys, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        first, self.taken = self.taken, (key, value)
        return self.taken if first is None else (key.expand_as(first[0]), value.expand_as(first[1]))

    monkeypatch.setattr(ChunkKeys, "update", update)


@pytest.mark.parametrize("layers", [4, 5], ids=["full attention", "sliding window"])
@pytest.mark.parametrize("fault", [_positions_one_off, _states_one_off, _keys_of_chosen_columns])
def test_a_wrong_trimmed_layer_is_seen(
    fault: Callable[[pytest.MonkeyPatch], None], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    columns = np.array(COLUMNS["one of each row"])
    found, wanted = chosen_logits(Gemma2ForCausalLM, FUNNELS["S=3"], columns, num_hidden_layers=layers)
    assert float(np.abs(found - wanted).max()) > 1e-3
