"""The closed-form fit of recovery `linear`, compared with least squares on states that the oracle computes."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from freed import uncollected
from models import base_of, random_rows, tiny_model
from numpy.typing import NDArray
from properties import base_weights
from tiers import slow
from transformers import Gemma2ForCausalLM

from funnel_export import FunnelSpec, apply_funnel
from funnel_export.funnel.maps import attach_maps
from funnel_export.quality.fitting import fit_maps
from funnel_export.quality.moments import Moments
from funnel_export.quality.states import read_states

pytestmark = pytest.mark.usefixtures("exact")

Array = NDArray[np.float64]
SLOTS, DROPPED = (FunnelSpec.parse(text, recovery="linear") for text in ("1:3:3", "1:3:drop"))
TEXTS, HELD_OUT, OTHERS = random_rows([60] * 12), random_rows([60] * 3, seed=1), random_rows([60] * 3, seed=2)


def states_of_the_oracle(spec: FunnelSpec, ids: Sequence[int]) -> tuple[Array, Array, Array]:
    """Hidden states of a text, each [tokens, width]: before the funnel, after it in the dense model, change read."""
    model = tiny_model(Gemma2ForCausalLM)
    weights, config = base_weights(model), model.config.to_dict()
    dense = oracle.trace(weights, config, None, ids).layers
    before, after = dense[0], dense[2]
    windows = oracle.list_windows(len(ids), spec.stride, spec.lookahead)
    pooled = np.stack([oracle.pool_window(before[tokens], spec.pooling) for tokens in windows])
    funnel = oracle.Funnel(**(spec.to_dict() | {"recovery": "delta", "drop": False}))
    slots = oracle.trace(weights, config, funnel, ids).layers[2]
    read = [oracle.slot_read_by(token, spec.stride, spec.lookahead) for token in range(len(ids))]
    return before, after, (slots - pooled)[read]


@pytest.mark.parametrize("spec", [SLOTS, DROPPED], ids=str)
def test_states_are_those_of_the_oracle(spec: FunnelSpec) -> None:
    found = read_states(tiny_model(), spec, TEXTS[0])
    before, after, change = states_of_the_oracle(spec, TEXTS[0])
    np.testing.assert_allclose(found.before, before, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.after, after, rtol=0, atol=1e-5)
    assert (found.change is None) == spec.drop
    if found.change is not None:
        np.testing.assert_allclose(found.change, change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [SLOTS, DROPPED], ids=str)
def test_models_and_states_are_freed_at_once(spec: FunnelSpec) -> None:
    model = tiny_model()
    with uncollected():
        found = read_states(model, spec, TEXTS[0])
        kept = [weakref.ref(each) for each in (*model.parameters(), found.before, found.after)]
        del model, found
        assert {each() for each in kept} == {None}


def rows_of_a_class(spec: FunnelSpec, name: str, texts: Sequence[Sequence[int]]) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets of the regression for the tokens of a class, one by one."""
    for ids in texts:
        before, after, change = states_of_the_oracle(spec, ids)
        for token in range(1, len(ids)):
            own = "rest" if spec.drop else "closed" if token % spec.stride == 0 else "stale"
            if own == name:
                length = np.linalg.norm(after[token])
                inputs = [before[token], [1.0]] if spec.drop else [before[token], change[token], [1.0]]
                base = before[token] if spec.drop else before[token] + change[token]
                yield np.concatenate(inputs) / length, (after[token] - base) / length


@pytest.mark.parametrize(
    ("spec", "name"),
    [(SLOTS, "stale"), *(slow(*one) for one in ((SLOTS, "closed"), (DROPPED, "rest")))],
    ids=str,
)
def test_a_map_is_the_ridge_regression_of_its_class(spec: FunnelSpec, name: str) -> None:
    maps, found = fit_maps(tiny_model(), spec, TEXTS, HELD_OUT)
    inputs, targets = map(np.stack, zip(*rows_of_a_class(spec, name, TEXTS), strict=True))
    fitted = found[name]
    start = np.zeros((inputs.shape[1], targets.shape[1]))
    if not spec.drop:
        change = inputs[:, 40:80]
        start[40:80] = np.eye(40) * (change * targets).sum() / (change * change).sum()
    pull = np.diag(np.sqrt(fitted.ridge) * np.linalg.norm(inputs, axis=0))
    wanted, *_ = np.linalg.lstsq(np.vstack([inputs, pull]), np.vstack([targets, pull @ start]), rcond=None)
    linear: Any = getattr(maps, name)
    np.testing.assert_allclose(linear.weight.detach().numpy().T, wanted[:-1], rtol=0, atol=2e-3)
    np.testing.assert_allclose(linear.bias.detach().numpy(), wanted[-1], rtol=0, atol=2e-3)
    assert fitted.tokens == len(inputs)
    checked, held = map(np.stack, zip(*rows_of_a_class(spec, name, HELD_OUT), strict=True))
    assert fitted.error == pytest.approx(((checked @ wanted - held) ** 2).sum() / (held**2).sum(), rel=1e-2)


def test_the_first_token_of_a_text_gets_its_mean() -> None:
    maps: Any = fit_maps(tiny_model(), DROPPED, TEXTS, HELD_OUT)[0]
    states = [states_of_the_oracle(DROPPED, ids) for ids in TEXTS]
    wanted = np.mean([after[0] - before[0] for before, after, _ in states], axis=0)
    np.testing.assert_allclose(maps.first.detach().numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [SLOTS, DROPPED], ids=str)
def test_a_fitted_model_is_nearer_to_the_dense_model(spec: FunnelSpec) -> None:
    maps, found = fit_maps(tiny_model(), spec, TEXTS, HELD_OUT)
    assert all(each.error < 0.95 for each in found.values())
    new, fitted = apply_funnel(tiny_model(), spec), tiny_model()
    attach_maps(base_of(fitted), maps)
    apply_funnel(fitted, spec)
    errors = []
    for model in (new, fitted):
        with torch.no_grad():
            wanted, got = (each(torch.tensor(OTHERS), use_cache=False).logits for each in (tiny_model(), model))
        logs = got.log_softmax(-1).flatten(0, 1), wanted.log_softmax(-1).flatten(0, 1)
        errors.append(float(torch.nn.functional.kl_div(*logs, log_target=True, reduction="batchmean")))
    assert errors[1] < 0.9 * errors[0]


def test_the_same_texts_give_the_same_maps() -> None:
    one, other = (fit_maps(tiny_model(), SLOTS, TEXTS[:3], HELD_OUT)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_error_of_nothing_is_all_of_it() -> None:
    moments = Moments(2, 1)
    moments.add(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    assert moments.error(torch.zeros(2, 1, dtype=torch.float64)) == pytest.approx(1.0)
    assert moments.error(torch.tensor([[3.0], [2.0]], dtype=torch.float64)) == pytest.approx(0.0, abs=1e-12)
    assert moments.error(torch.tensor([[3.0], [0.0]], dtype=torch.float64)) == pytest.approx(16 / 25)
