"""The losses equal those of Hugging Face and of torch.distributions, and distances of hidden states."""

from typing import Any

import numpy as np
import pytest
import torch
from adapting import FUNNEL, LENGTHS, batch_of, gradients, ids, language_batch
from corpora import BOS
from models import PAD, VOCAB, base_of, make_batch, random_rows, tiny_model, with_random_maps
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from transformers import (
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2ForTokenClassification,
    Gemma3ForCausalLM,
    Gemma3TextForSequenceClassification,
    PreTrainedModel,
    VaultGemmaForCausalLM,
)

from funnel_export import FunnelSpec, apply_funnel
from funnel_export.funnel import patch_forward
from funnel_export.funnel.parts import call_part
from funnel_export.quality.rows import Row
from funnel_export.training import objectives
from funnel_export.training.batches import TrainingBatch
from funnel_export.training.objectives import HiddenLoss, KLLoss, Loss, TargetLoss
from funnel_export.training.session import checkpoint_activations

SPEC = FunnelSpec.parse(FUNNEL)
LABELS = 3
KEPT = torch.tensor([1, 4, 5, 20, 21, 22, 60])
"""A part of the vocabulary."""
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def model_of(cls: type[PreTrainedModel] = Gemma2ForCausalLM, funnel: FunnelSpec | None = None, **options: Any) -> Any:
    """A model in float32."""
    model = tiny_model(cls, dtype=torch.float32, **options)
    return model if funnel is None else with_random_maps(apply_funnel(model, funnel))


def pair_of(funnel: FunnelSpec = SPEC, **options: Any) -> tuple[Any, Any]:
    """A model with a funnel, and the dense model."""
    dense = model_of(**options).requires_grad_(False)
    return model_of(funnel=funnel, **options), dense


def logits_of(model: Any, batch: TrainingBatch) -> Tensor:
    """Hugging Face's logits of the scored tokens."""
    found: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return found[batch.rows, batch.columns]


@pytest.mark.parametrize("funnel", [None, SPEC, FunnelSpec.parse("1:3:drop", recovery="linear")], ids=str)
@pytest.mark.parametrize("cls", [Gemma2ForCausalLM, Gemma3ForCausalLM, VaultGemmaForCausalLM])
def test_targets_of_a_language_model(cls: type[PreTrainedModel], funnel: FunnelSpec | None) -> None:
    model, (batch, rows) = model_of(cls, funnel), language_batch()
    padded = make_batch(rows, "right")
    labels = padded.input_ids.masked_fill(padded.attention_mask == 0, -100)
    expected = model(padded.input_ids, padded.attention_mask, labels=labels, use_cache=False).loss
    torch.testing.assert_close(TargetLoss(model)(batch), expected, **CLOSE)
    assert len(batch.targets) == sum(LENGTHS)


@pytest.mark.parametrize("cls", [Gemma2ForSequenceClassification, Gemma3TextForSequenceClassification])
def test_targets_of_a_classifier(cls: type[PreTrainedModel]) -> None:
    model, rows = model_of(cls, SPEC), random_rows(LENGTHS)
    labels, padded = torch.tensor([2, 0, 1]), make_batch(rows, "right")
    batch = batch_of([Row(0, ids(row), ids([0]), ids([label])) for row, label in zip(rows, labels, strict=True)])
    found = model(padded.input_ids, padded.attention_mask, labels=labels)
    torch.testing.assert_close(TargetLoss(model)(batch), found.loss, **CLOSE)
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits, labels), **CLOSE)


def test_targets_of_a_tagger() -> None:
    """Every second token is scored, as the first of a word."""
    model, rows = model_of(Gemma2ForTokenClassification, SPEC), random_rows(LENGTHS)
    padded = make_batch(rows, "right")
    labels = torch.full_like(padded.input_ids, -100)
    made = []
    for number, row in enumerate(rows):
        columns, targets = np.arange(1, len(row), 2), ids(row)[1::2] % LABELS
        labels[number, columns] = torch.from_numpy(targets)
        made.append(Row(0, ids(row), columns, targets))
    expected = model(padded.input_ids, padded.attention_mask, labels=labels).loss
    torch.testing.assert_close(TargetLoss(model)(batch_of(made)), expected, **CLOSE)


@pytest.mark.parametrize("vocabulary", [None, KEPT], ids=["all", "some"])
def test_kl(vocabulary: Tensor | None) -> None:
    (model, dense), (batch, _) = pair_of(), language_batch()
    kept = torch.arange(VOCAB) if vocabulary is None else vocabulary
    wanted, own = (Categorical(logits=logits_of(each, batch)[:, kept]) for each in (dense, model))
    expected = kl_divergence(wanted, own).mean()
    assert expected > 0.01
    torch.testing.assert_close(KLLoss(model, dense, vocabulary)(batch), expected, **CLOSE)


def test_the_softcap_of_logits_counts() -> None:
    batch, _ = language_batch()
    capped, free = (KLLoss(*pair_of(final_logit_softcapping=cap), None)(batch) for cap in (3.0, None))
    assert abs(capped - free) > 1e-3


def test_kl_of_a_classifier() -> None:
    (model, dense), rows = pair_of(cls=Gemma2ForSequenceClassification), random_rows(LENGTHS)
    batch, padded = batch_of([Row(0, ids(row), ids([0]), ids([0])) for row in rows]), make_batch(rows, "right")
    wanted, own = (Categorical(logits=each(padded.input_ids, padded.attention_mask).logits) for each in (dense, model))
    torch.testing.assert_close(KLLoss(model, dense, None)(batch), kl_divergence(wanted, own).mean(), **CLOSE)


@pytest.mark.parametrize("vocabulary", [None, KEPT], ids=["all", "some"])
def test_kl_of_equal_models_is_zero_without_a_gradient(vocabulary: Tensor | None) -> None:
    model, dense = model_of(), model_of()
    loss = KLLoss(model, dense, vocabulary)(language_batch()[0])
    loss.backward()
    assert abs(loss) < 1e-6
    assert max(float(each.abs().max()) for each in gradients(model).values()) < 1e-6


@pytest.mark.parametrize("layers", ["1:3", "0:4"])
def test_hidden_is_zero_with_one_token_in_each_window_and_grows_with_changes(layers: str) -> None:
    (model, dense), (batch, _) = pair_of(FunnelSpec.parse(f"{layers}:1")), language_batch()
    losses = []
    for _ in range(3):
        losses.append(float(HiddenLoss(model, dense, FunnelSpec.parse(f"{layers}:1"))(batch).detach()))
        with torch.no_grad():
            base_of(model).layers[1].post_feedforward_layernorm.weight.add_(0.1)
    assert losses[0] < 1e-9 < 1e-5 < losses[1] < losses[2]


def test_hidden_equals_the_distance_of_states() -> None:
    (model, dense), (batch, _) = pair_of(), language_batch()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    wanted = dense(**inputs, output_hidden_states=True).hidden_states[SPEC.recover_layer]
    states = {}

    def run(name: str, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        found = call_part(name, *arguments, **options)
        states[name] = found[0]
        return found

    watched = model_of()
    patch_forward(watched, SPEC, run)
    watched(**inputs)
    distances = []
    for row, length in enumerate(batch.attention_mask.sum(-1).tolist()):
        own, other = states["funnel.recovered"][row, 1:length], wanted[row, 1:length]
        distances.append((own - other).norm(dim=-1) ** 2 / other.norm(dim=-1) ** 2)
    torch.testing.assert_close(HiddenLoss(model, dense, SPEC)(batch), torch.cat(distances).mean(), **CLOSE)


def losses(model: Any, dense: Any) -> dict[str, Loss]:
    """All losses."""
    return {
        "hidden": HiddenLoss(model, dense, SPEC),
        "targets": TargetLoss(model),
        "kl": KLLoss(model, dense, None),
        "kl of some": KLLoss(model, dense, KEPT),
    }


@pytest.mark.parametrize("name", ["targets", "kl", "kl of some"])
def test_logits_in_parts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (model, dense), (batch, _) = pair_of(), language_batch()
    whole = losses(model, dense)[name](batch)
    whole.backward()
    expected = gradients(model)
    model.zero_grad()  # makes new gradients
    monkeypatch.setitem(objectives.LOGITS, "cpu", 3 * VOCAB)
    parts = losses(model, dense)[name](batch)
    parts.backward()
    torch.testing.assert_close(parts, whole, **CLOSE)
    found = gradients(model)
    assert found.keys() == expected.keys() == {each for each, _ in model.named_parameters()}
    for each, gradient in found.items():
        torch.testing.assert_close(gradient, expected[each], **CLOSE)


@pytest.mark.parametrize("name", ["targets", "kl", "hidden"])
def test_activations_that_are_computed_again_change_nothing(name: str) -> None:
    (model, dense), (batch, _) = pair_of(), language_batch()
    plain = losses(model, dense)[name](batch)
    plain.backward()
    expected = gradients(model)
    model.zero_grad()  # makes new gradients
    checkpoint_activations(model)
    again = losses(model.train(), dense)[name](batch)
    again.backward()
    assert torch.equal(again, plain)
    assert gradients(model).keys() == expected.keys()
    for each, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[each], **CLOSE)


def test_padding_is_not_counted() -> None:
    """The mean over two rows is that of the rows alone, each with the weight of its scored tokens."""
    model = model_of(funnel=SPEC)
    whole, rows = language_batch((9, 3), seed=1)
    alone = [batch_of([Row(0, ids(row[:-1]), np.arange(len(row) - 1), ids(row[1:]))]) for row in rows]
    expected = sum(TargetLoss(model)(each) * len(each.targets) for each in alone) / len(whole.targets)
    torch.testing.assert_close(TargetLoss(model)(whole), expected, **CLOSE)
    assert int(whole.input_ids[1, -1]) == PAD
    assert int(whole.input_ids[0, 0]) == BOS
