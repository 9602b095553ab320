"""Hugging Face's `generate` on exported graphs gives what it gives on the unpatched model, token by token."""

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Recipe
from models import PAD
from stepping import texts
from tiers import LONG
from tokenizers_of_words import save_tokenizer
from transformers import GenerationConfig, pipeline
from transformers.generation import StoppingCriteria

from funnel_export import (
    Batch,
    BundleError,
    FunnelModelForCausalLM,
    FunnelSpec,
    Request,
    Sampling,
    SpecError,
    apply_funnel,
    generate,
)
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Task

PAST = Task.TEXT_GENERATION_WITH_PAST
DENSE, FUNNEL = Recipe(task=PAST, funnel=None), Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"))
COMMON: dict[str, Any] = {"max_new_tokens": 24, "pad_token_id": PAD, "eos_token_id": None, "use_cache": True}
GREEDY = COMMON | {"do_sample": False}


@functools.cache
def ours(recipe: Recipe, target: str) -> FunnelModelForCausalLM:
    return FunnelModelForCausalLM.from_pretrained(recipe.bundle().path, target=target)


@functools.cache
def theirs(recipe: Recipe) -> Any:
    """Hugging Face's model, with the funnel if there is one."""
    model = recipe.model(torch.float32)
    return model if recipe.funnel is None else apply_funnel(model, recipe.funnel)


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Prompts with padding on the left, as Hugging Face's tokenizers make them for `generate`."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def generated(model: Any, rows: list[list[int]], **options: Any) -> list[list[int]]:
    torch.manual_seed(0)
    result: list[list[int]] = model.generate(**padded(rows), **options).tolist()
    return result


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("openvino", marks=LONG)])
@pytest.mark.parametrize("recipe", [DENSE, FUNNEL], ids=["dense", "funnel"])
@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        GREEDY | {"num_beams": 3},
        GREEDY | {"num_beams": 2, "num_return_sequences": 2},
        COMMON | {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
        GREEDY | {"repetition_penalty": 1.3},
    ],
    ids=["greedy", "beams", "several beams", "sampling", "penalty"],
)
def test_as_hugging_face_generates(recipe: Recipe, target: str, options: dict[str, Any]) -> None:
    rows = texts([5, 11, 1])
    assert generated(ours(recipe, target), rows, **options) == generated(theirs(recipe), rows, **options)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0, seed=4),
        Sampling(temperature=1.7, seed=5),
        Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=6),
    ],
    ids=["greedy", "plain", "temperature", "top-k and top-p"],
)
def test_a_batch_that_texts_join_chooses_the_same_tokens(sampling: Sampling) -> None:
    rows, options = texts([5, 11, 1]), COMMON | {"do_sample": False}
    if not sampling.greedy:
        names = ("temperature", "top_k", "top_p")
        options = COMMON | {"do_sample": True} | {name: getattr(sampling, name) for name in names}
    batch, found = Batch(stepper=ours(FUNNEL, "onnxruntime").stepper, max_rows=3), dict[int, list[Any]]()
    for row in rows:
        batch.insert(Request(prompt=tuple(row), max_new_tokens=24, sampling=sampling))
        for token in batch.next():
            found.setdefault(token.key, []).append(token.token)
    while batch.keys:
        for token in batch.next():
            found[token.key].append(token.token)
    for key, row in enumerate(rows):
        torch.manual_seed(sampling.seed or 0)
        wanted = theirs(FUNNEL).generate(torch.tensor([row]), **options)[0]
        assert found[key] == wanted[len(row) :].tolist()


def test_openvino_generates_the_same() -> None:
    rows = texts([5, 11, 1])
    assert generated(ours(FUNNEL, "openvino"), rows, **GREEDY) == generated(theirs(FUNNEL), rows, **GREEDY)


def test_prompts_in_chunks_and_prompt_lookup() -> None:
    row = texts([6])[0] * 3
    wanted = generated(theirs(FUNNEL), [row], **GREEDY)
    model = ours(FUNNEL, "onnxruntime")
    assert generated(model, [row], prefill_chunk_size=4, **GREEDY) == wanted
    assert generated(model, [row], prompt_lookup_num_tokens=4, **GREEDY) == wanted


def test_assisted_by_another_model() -> None:
    """The assistant proposes tokens; those that the model rejects are cropped from its cache."""
    model, rows = ours(FUNNEL, "onnxruntime"), texts([9])
    wanted = generated(theirs(FUNNEL), rows, **GREEDY)
    assert generated(model, rows, assistant_model=ours(DENSE, "onnxruntime"), **GREEDY) == wanted


def test_a_batch_equals_its_rows_alone() -> None:
    model, rows = ours(FUNNEL, "onnxruntime"), texts([4, 9, 2])
    together = generated(model, rows, **GREEDY)
    for row, text in zip(rows, together, strict=True):
        assert generated(model, [row], **GREEDY)[0] == text[-len(row) - 24 :]


def test_a_second_turn_on_the_cache_equals_the_whole_text() -> None:
    model = ours(FUNNEL, "onnxruntime")
    prompt = torch.tensor(texts([7]))
    first = model.generate(prompt, return_dict_in_generate=True, **GREEDY)
    turn = torch.cat([first.sequences, torch.tensor(texts([6], seed=1))], dim=1)
    again = model.generate(turn, past_key_values=first.past_key_values, **GREEDY)
    assert again.tolist() == model.generate(turn, **GREEDY).tolist()


def test_stopping_and_streaming() -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((1,), input_ids.shape[1] >= 10)

    model, prompt = ours(FUNNEL, "onnxruntime"), torch.tensor(texts([7]))
    assert model.generate(prompt, stopping_criteria=[After()], **GREEDY).shape == (1, 10)
    ends = model.generate(prompt, **GREEDY)[0, 7:].tolist()
    stopped = model.generate(prompt, **GREEDY | {"eos_token_id": ends[3]})[0, 7:].tolist()
    assert stopped == ends[: ends.index(ends[3]) + 1]


def test_logits_of_chunks_with_padding_on_both_sides() -> None:
    model, row = ours(FUNNEL, "onnxruntime"), texts([9])[0]
    with torch.no_grad():
        wanted = theirs(FUNNEL)(torch.tensor([row])).logits[0]
    ids = torch.tensor([[PAD, *row[:4], PAD, PAD]])
    first = model(ids, attention_mask=(ids != PAD).long())
    torch.testing.assert_close(first.logits[0, 1:5], wanted[:4], atol=2e-5, rtol=0)
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]])
    rest = model(torch.tensor([row[4:]]), attention_mask=mask, past_key_values=first.past_key_values, logits_to_keep=2)
    torch.testing.assert_close(rest.logits[0], wanted[7:], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda m: m(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[1, 0, 1]])),
            "padding between the tokens",
        ),
        (lambda m: m(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3)), "mask has the wrong shape"),
        (lambda m: m(torch.tensor([[1, 61]])), r"(?s)outside the model's vocabulary.*61.*0 to 60"),
        (lambda m: m(torch.zeros(1, 0, dtype=torch.long)), r"(?s)there are no tokens.*\(1, 0\)"),
        (lambda m: m(torch.ones(1, 513, dtype=torch.long)), r"(?s)longer than the model.*513 tokens.*at most 512"),
    ],
    ids=["padding", "mask", "vocabulary", "empty", "too long"],
)
def test_bad_input_is_refused(call: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        call(ours(FUNNEL, "onnxruntime"))


def test_bad_input_leaves_the_cache_as_it_was() -> None:
    model, row = ours(FUNNEL, "onnxruntime"), texts([14])[0]
    cache = model(torch.tensor([row[:8]])).past_key_values
    for wrong in (torch.tensor([[99]]), torch.tensor([[1], [2]]), torch.ones(1, 510, dtype=torch.long)):
        with pytest.raises(SpecError):
            model(wrong, past_key_values=cache)
    found = model(torch.tensor([row[8:]]), past_key_values=cache).logits
    torch.testing.assert_close(found, model(torch.tensor([row])).logits[:, 8:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("failing", ["entry", "middle", "exit"])
def test_a_step_that_fails_leaves_the_cache_as_it_was(failing: str) -> None:
    model = FunnelModelForCausalLM.from_pretrained(FUNNEL.bundle().path)
    stepper, row = model.stepper, np.array(texts([30]))
    state = stepper.new_state(1)
    stepper.step(state, row[:, :8])
    session, before = stepper.sessions[failing], state.lengths.copy()

    class Cancelled:
        def run(self, _: Any) -> Any:
            raise KeyboardInterrupt

    stepper.sessions[failing] = Cancelled()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        stepper.step(state, row[:, 8:14])
    stepper.sessions[failing] = session
    assert (state.lengths == before).all()
    found = stepper.step(state, row[:, 8:])
    fresh = stepper.new_state(1)
    np.testing.assert_allclose(found, stepper.step(fresh, row), atol=2e-5)


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A bundle with a tokenizer."""
    folder = shutil.copytree(FUNNEL.bundle().path, tmp_path / "bundle")
    save_tokenizer(folder)
    return folder


def test_text_in_and_text_out(chatty: Path) -> None:
    pieces: list[str] = []
    found = generate(chatty, "w5 w6 w7", sample=False, max_new_tokens=9, show=pieces.append)
    wanted = generated(theirs(FUNNEL), [[1, 5, 6, 7]], **GREEDY | {"max_new_tokens": 9})[0][4:]
    assert found.tokens == wanted
    assert "".join(pieces) == found.text == " ".join(f"w{token}" for token in wanted)
    assert (found.prompt_tokens, found.finish_reason) == (4, "length")
    assert found.tokens_per_second is not None
    assert found.seconds_to_first_token > 0
    assert found.cache_bytes > 0


def test_the_end_of_text_is_a_reason_to_stop(chatty: Path) -> None:
    ends = generate(chatty, "w5 w6 w7", sample=False, max_new_tokens=1).tokens[0]
    GenerationConfig(eos_token_id=[ends], pad_token_id=0).save_pretrained(chatty)
    found = generate(chatty, "w5 w6 w7", max_new_tokens=9)
    assert (found.tokens, found.finish_reason, found.tokens_per_second) == ([ends], "stop", None)


def test_a_chat_template_is_applied(chatty: Path) -> None:
    save_tokenizer(chatty, chat=True)
    options: dict[str, Any] = {"sample": False, "max_new_tokens": 6}
    assert generate(chatty, "w5 w6", **options).prompt_tokens == 4, "<s> w5 w6 w9"
    assert generate(chatty, "w5 w6", chat=False, **options).prompt_tokens == 3
    plain = generate(chatty, "w5 w6 w9", chat=False, **options)
    assert generate(chatty, "w5 w6", **options).tokens == plain.tokens


def test_sampling_is_reproducible(chatty: Path) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_k": 50, "top_p": 0.99, "max_new_tokens": 12}
    one, same, other = (generate(chatty, "w5", seed=seed, **options).tokens for seed in (1, 1, 2))
    assert one == same != other


def test_new_tokens_end_with_the_models_positions(chatty: Path) -> None:
    found = generate(chatty, " ".join(["w8"] * 505), sample=False, max_new_tokens=100)
    assert (found.prompt_tokens, len(found.tokens), found.finish_reason) == (506, 6, "length")
    with pytest.raises(SpecError, match=r"(?s)prompt is too long.*512 tokens.*at most 511"):
        generate(chatty, " ".join(["w8"] * 511))


def test_a_pipeline(chatty: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatty)
    text = pipeline("text-generation", model=ours(FUNNEL, "onnxruntime"), tokenizer=tokenizer)
    (found,) = text("w5 w6 w7", return_full_text=False, **GREEDY | {"max_new_tokens": 5})
    assert found["generated_text"].split() == generate(chatty, "w5 w6 w7", sample=False, max_new_tokens=5).text.split()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": "w5", "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompt": "w5", "chat": True}, "no chat template"),
        ({"prompt": "w5", "target": "abacus"}, "unknown target"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str, chatty: Path) -> None:
    with pytest.raises(SpecError, match=told):
        generate(chatty, **options)


def test_bundles_that_generate_nothing() -> None:
    with pytest.raises(SpecError, match=r"(?s)no graphs with a cache.*--task text-generation-with-past"):
        generate(Recipe().bundle(), "w5")
    with pytest.raises(BundleError, match="no tokenizer"):
        generate(FUNNEL.bundle(), "w5")


def test_memory_is_given_back() -> None:
    """2,000 steps, and 200 texts that are given up after a few tokens."""
    model = ours(FUNNEL, "onnxruntime")
    stepper: Stepper = model.stepper
    token = np.array([[5]])

    def text(steps: int) -> None:
        state = stepper.new_state(1)
        for _ in range(steps):
            stepper.step(state, token)

    text(50)
    before = resident()
    for _ in range(4):
        text(500)
    for _ in range(200):
        text(3)
    assert resident() - before < 20e6


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096.0
