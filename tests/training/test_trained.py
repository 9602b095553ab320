"""Which weights each part trains, and that no other model changes with them."""

import re
from typing import Any

import pytest
import torch
from adapting import FUNNEL, batch_of, gradients, ids, language_batch
from models import base_of, random_rows, tiny_model, with_random_maps
from torch import Tensor
from transformers import Gemma2ForCausalLM, Gemma2ForSequenceClassification, PreTrainedModel

from funnel_export import FunnelSpec, apply_funnel
from funnel_export.errors import SpecError
from funnel_export.quality.rows import Row
from funnel_export.quality.scorers import with_same_weights
from funnel_export.spec.training import Objective, Part, TrainingSpec
from funnel_export.training.batches import TrainingBatch
from funnel_export.training.objectives import HiddenLoss, TargetLoss
from funnel_export.training.session import checkpoint_activations
from funnel_export.training.student import Student
from funnel_export.training.trained import Trained, choose_weights

DELTA, LINEAR = FunnelSpec.parse(FUNNEL), FunnelSpec.parse(FUNNEL, recovery="linear")
DROP = FunnelSpec.parse("1:3:drop", recovery="linear")
LAYERS = frozenset(range(4))
HEAD, EMBEDDING = "score.weight", "model.embed_tokens.weight"


def pair_of(funnel: FunnelSpec | None, cls: type[PreTrainedModel] = Gemma2ForCausalLM, **options: Any) -> Any:
    """A model with a funnel, and the dense model that has the same weights."""
    dense = tiny_model(cls, dtype=torch.float32, **options).requires_grad_(False)
    model = with_same_weights(dense)
    return (model if funnel is None else apply_funnel(model, funnel)), dense


def spec_of(part: str, objective: str = "targets") -> TrainingSpec:
    """Settings of a part."""
    return TrainingSpec(part=Part(part), objective=Objective(objective), rank=2)


def layers_of(trained: Trained) -> set[int]:
    """The layers of which weights are trained."""
    return {int(found[1]) for name in trained.weights if (found := re.search(r"layers\.(\d+)\.", name))}


def rest_of(trained: Trained) -> set[str]:
    """The first parts of the names of the other weights that are trained."""
    return {".".join(name.split(".")[:2]) for name in trained.weights if "layers." not in name}


def batch_for(model: Any) -> TrainingBatch:
    """A batch for a language model or a classifier."""
    if type(model) is Gemma2ForCausalLM:
        return language_batch()[0]
    return batch_of([Row(0, ids(row), ids([0]), ids([label])) for label, row in enumerate(random_rows((5, 9, 3)))])


def train(trained: Trained, steps: int = 3) -> None:
    """Some steps on one batch."""
    batch, loss = batch_for(trained.model), TargetLoss(trained.model)
    optimizer = torch.optim.AdamW(trained.weights.values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def logits_of(model: Any) -> Tensor:
    """Logits of two rows."""
    batch = language_batch()[0]
    with torch.no_grad():
        found: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return found


FOUND = {
    "all": ("all", LINEAR, LAYERS, {"model.embed_tokens", "model.norm", "model.funnel"}),
    "all of the dense model": ("all", None, LAYERS, {"model.embed_tokens", "model.norm"}),
    "all but dropped layers": ("all", DROP, {0, 3}, {"model.embed_tokens", "model.norm", "model.funnel"}),
    "middle": ("middle", DELTA, LAYERS, set()),
    "middle from the first layer on": (
        "middle",
        FunnelSpec.parse("0:1:2", recovery="linear"),
        {0, 1},
        {"model.funnel"},
    ),
    "middle of dropped layers": ("middle", DROP, {0, 3}, {"model.funnel"}),
    "lora": ("lora", LINEAR, LAYERS, {"model.funnel"}),
    "lora but dropped layers": ("lora", DROP, {0, 3}, {"model.funnel"}),
    "maps": ("maps", LINEAR, set(), {"model.funnel"}),
}


@pytest.mark.parametrize(("part", "funnel", "layers", "rest"), FOUND.values(), ids=FOUND)
def test_the_weights_of_a_part(part: str, funnel: FunnelSpec | None, layers: set[int], rest: set[str]) -> None:
    trained = choose_weights(pair_of(funnel)[0], spec_of(part), funnel)
    assert layers_of(trained) == layers
    assert rest_of(trained) == rest
    assert all(".lora_" in name or "funnel" in name for name in trained.weights) or part != "lora"
    assert {name for name, weight in trained.model.named_parameters() if weight.requires_grad} == set(trained.weights)
    before = {name: weight.detach().clone() for name, weight in trained.model.named_parameters()}
    with_random_maps(trained.model)  # otherwise those of dropped layers have no gradient in the first step
    train(trained)
    changed = {name for name, weight in trained.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(trained.weights)


@pytest.mark.parametrize("part", ["all", "middle", "lora", "maps"])
def test_the_head_of_a_classifier_is_part_of_all(part: str) -> None:
    trained = choose_weights(pair_of(LINEAR, Gemma2ForSequenceClassification)[0], spec_of(part), LINEAR)
    before = trained.weights[HEAD].detach().clone()
    train(trained)
    assert not torch.equal(trained.weights[HEAD], before)


@pytest.mark.parametrize("part", ["all", "middle", "lora", "maps"])
def test_hidden_trains_what_its_loss_reaches(part: str) -> None:
    model, dense = pair_of(LINEAR)
    trained = choose_weights(model, spec_of(part, "hidden"), LINEAR)
    HiddenLoss(model, dense, LINEAR)(batch_for(model)).backward()
    assert gradients(model).keys() == trained.weights.keys()
    assert layers_of(trained) == (set() if part == "maps" else {0, 1, 2})


def test_there_must_be_something_to_train() -> None:
    dropped = FunnelSpec.parse("0:2:drop")
    with pytest.raises(SpecError, match="nothing to train"):
        choose_weights(pair_of(dropped)[0], spec_of("lora", "hidden"), dropped)


@pytest.mark.parametrize("part", ["all", "middle", "lora", "maps"])
def test_the_dense_model_stays_as_it_was(part: str) -> None:
    model, dense = pair_of(LINEAR)
    weights = {name: weight.clone() for name, weight in dense.state_dict().items()}
    logits, changed = logits_of(dense), logits_of(model)
    train(choose_weights(model, spec_of(part), LINEAR))
    assert all(torch.equal(weight, weights[name]) for name, weight in dense.state_dict().items())
    assert dense.state_dict().keys() == weights.keys()
    assert torch.equal(logits_of(dense), logits)
    assert not torch.equal(logits_of(model), changed)


@pytest.mark.parametrize("objective", ["targets", "hidden"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_and_a_head_that_are_tied_stay_tied(tied: bool, objective: str) -> None:
    trained = choose_weights(pair_of(DELTA, tie_word_embeddings=tied)[0], spec_of("all", objective), DELTA)
    model = trained.model
    assert (model.lm_head.weight is base_of(model).embed_tokens.weight) == tied
    assert ("lm_head.weight" in trained.weights) == (not tied and objective == "targets")
    assert (trained.finish(torch.bfloat16).lm_head.weight is base_of(model).embed_tokens.weight) == tied


def test_merged_adapters_change_no_logits() -> None:
    model, dense = pair_of(LINEAR)
    trained, plain = choose_weights(model, spec_of("lora"), LINEAR), dense.state_dict().keys()
    torch.testing.assert_close(logits_of(model), logits_of(apply_funnel(dense, LINEAR)), rtol=0, atol=0)
    train(trained)
    expected = logits_of(model)
    merged = trained.finish(torch.float32)
    assert merged is model
    assert {name for name in merged.state_dict() if "funnel" not in name} == set(plain)
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["all", "lora"])
def test_weights_are_trained_in_float32_and_end_in_a_dtype(part: str) -> None:
    dense = tiny_model(dtype=torch.bfloat16).requires_grad_(False)
    trained = choose_weights(apply_funnel(with_same_weights(dense), LINEAR), spec_of(part), LINEAR)
    assert {weight.dtype for weight in trained.weights.values()} == {torch.float32}
    assert {weight.dtype for weight in dense.parameters()} == {torch.bfloat16}
    Student(TargetLoss(trained.model), trained.weights, torch.bfloat16)(**language_batch()[0]._asdict())[
        "loss"
    ].backward()
    final = trained.finish(torch.bfloat16)
    assert {weight.dtype for weight in final.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in final.parameters())
    assert not final.training


def test_a_student_trains_its_model_only_and_checkpoints_it() -> None:
    """A measurement sets the model to evaluate; the trainer sets the student to training before each batch."""
    model, dense = pair_of(DELTA)
    checkpoint_activations(model)
    trained = choose_weights(model, spec_of("all"), DELTA)
    loss = TargetLoss(model)
    loss.models = (model, dense)
    student, calls = Student(loss, trained.weights, torch.float32), list[int]()
    base_of(model).layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        student.train()
        assert (model.training, dense.training) == (True, False)
        calls.clear()
        student(**language_batch()[0]._asdict())["loss"].backward()
        assert len(calls) == 2  # the second for the gradient
        model.eval()
    assert sum(weight.numel() for weight in student.parameters()) == sum(
        weight.numel() for weight in trained.weights.values()
    )
