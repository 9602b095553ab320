"""Texts read in steps give what one pass over the whole text gives, in eager PyTorch in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from models import tiny_model
from properties import oracle_of
from stepping import (
    eager_stepper,
    forgets_the_open_window,
    largest_error,
    read,
    reads_one_early,
    stale_change,
    steps_of,
    texts,
    whole,
)
from tiers import slow_but
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM, GemmaForCausalLM, VaultGemmaForCausalLM

from funnel_export import FunnelSpec, SpecError
from funnel_export.funnel import queries
from funnel_export.runtime.state import State
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Recovery

EXACT = 1e-10
FUNNELS = [None, *(FunnelSpec(pool_layer=1, recover_layer=3, stride=stride) for stride in (1, 2, 3, 4))]


def funnel(stride: int = 3, **options: Any) -> FunnelSpec:
    return FunnelSpec(pool_layer=1, recover_layer=3, stride=stride, **options)


@pytest.mark.parametrize("spec", FUNNELS, ids=lambda spec: "dense" if spec is None else f"S={spec.stride}")
@pytest.mark.parametrize("chunk", slow_but((None, 4), (None, 1, 4)), ids=["whole prompts", "tokens", "chunks of 4"])
def test_a_ragged_batch_at_every_phase(spec: FunnelSpec | None, chunk: int | None) -> None:
    """Prompts of 1 to 3S+1 tokens in one batch, each followed by 40 tokens: rows close their windows at all phases."""
    prompts = range(1, 3 * (1 if spec is None else spec.stride) + 2)
    rows = texts([prompt + 40 for prompt in prompts])
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, steps_of([*map(len, rows)], prompts, chunk))
    assert largest_error(found, whole(Gemma2ForCausalLM, spec, rows)) < EXACT


OPTIONS = [
    *({"recovery": recovery} for recovery in ("add", "average", "replace", "linear")),
    *({"stride": 1, "drop": True, "recovery": recovery} for recovery in ("delta", "linear")),
    *({"pooling": pooling} for pooling in ("max", "first", "last")),
    *({"slot_positions": "compact", "stride": stride} for stride in (2, 3)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_pooling_recovery_and_position(options: dict[str, Any]) -> None:
    rows, spec = texts([18, 25, 21]), funnel(**options)
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, steps_of([18, 25, 21], [3, 10, 6]))
    assert largest_error(found, whole(Gemma2ForCausalLM, spec, rows)) < EXACT


@pytest.mark.parametrize("recovery", ["delta", "linear"])
@pytest.mark.parametrize("place", [(0, 4), (0, 2), (2, 4)], ids=str)
def test_a_stage_without_layers(place: tuple[int, int], recovery: Recovery) -> None:
    """A funnel from the embedding on leaves the entry without layers, one to the last layer the exit."""
    spec = FunnelSpec(pool_layer=place[0], recover_layer=place[1], stride=3, recovery=recovery)
    rows = texts([14, 9])
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, steps_of([14, 9], [5, 2]))
    assert largest_error(found, whole(Gemma2ForCausalLM, spec, rows)) < EXACT


@pytest.mark.parametrize("cls", [GemmaForCausalLM, Gemma3ForCausalLM, VaultGemmaForCausalLM])
@pytest.mark.parametrize("spec", [None, funnel()], ids=["dense", "funnel"])
def test_every_family(cls: Any, spec: FunnelSpec | None) -> None:
    rows = texts([16, 22])
    _, found = read(eager_stepper(cls, spec), rows, steps_of([16, 22], [4, 9]))
    assert largest_error(found, whole(cls, spec, rows)) < EXACT


@pytest.mark.parametrize("spec", [None, funnel(), funnel(2, slot_positions="compact")], ids=["dense", "S=3", "compact"])
@pytest.mark.parametrize("window", slow_but((1, 3, 128), (1, 2, 3, 100, 128, 300)))
def test_windows_shorter_and_longer_than_the_cache(window: int, spec: FunnelSpec | None) -> None:
    """Of 512 positions, windows of up to 128 are gathered: also where a cache has fewer entries, or not one to see."""
    rows = texts([140, 12])
    found = read(
        eager_stepper(Gemma2ForCausalLM, spec, sliding_window=window), rows, [[3, 3], [1, 1], [129, 8], [7, 0]]
    )
    assert largest_error(found[1], whole(Gemma2ForCausalLM, spec, rows, sliding_window=window)) < EXACT


def test_the_oracle_agrees() -> None:
    """The oracle shares no code with the package."""
    spec, rows = funnel(), texts([17, 12])
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, steps_of([17, 12], [5, 2]))
    oracle = oracle_of(tiny_model(Gemma2ForCausalLM), spec)
    assert largest_error(found, [oracle(row).numpy() for row in rows]) < EXACT


def test_the_middle_runs_only_if_a_window_closes() -> None:
    stepper, rows = eager_stepper(Gemma2ForCausalLM, funnel(4)), texts([14])
    ran, run = [], stepper.sessions["middle"].run
    stepper.sessions["middle"].run = lambda inputs: ran.append(inputs["slots"].tolist()) or run(inputs)  # type: ignore[method-assign]
    read(stepper, rows, [[6], *[[1]] * 8])
    assert ran == [[[0, 1]], [[2]], [[3]]], "windows end at tokens 0, 4, 8 and 12"


def test_a_row_may_wait() -> None:
    """A row with no tokens in a chunk keeps its place."""
    rows, spec = texts([9, 11]), funnel()
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, [[4, 0], [0, 5], [1, 0], [0, 6], [4, 0]])
    assert largest_error(found, whole(Gemma2ForCausalLM, spec, rows)) < EXACT


@pytest.mark.parametrize("spec", [None, *map(funnel, (2, 3, 4))], ids=["dense", "S=2", "S=3", "S=4"])
def test_after_a_crop_all_is_as_if_the_rest_had_not_been_read(spec: FunnelSpec | None) -> None:
    stepper, rows = eager_stepper(Gemma2ForCausalLM, spec), texts([20, 20])
    wanted = whole(Gemma2ForCausalLM, spec, rows)
    for kept in range(12):
        state, _ = read(stepper, texts([20, 20], seed=1), [[20, 20]])
        state.crop(np.array([0, 0]))
        for row, count in enumerate((kept, 12 - kept)):
            counts = [0, 0]
            counts[row] = count
            if count:
                stepper.step(state, np.array([each[:count] for each in rows]), np.array(counts))
        junk = texts([7, 7], seed=2)
        stepper.step(state, np.array(junk))
        state.crop(np.array([kept, 12 - kept]))
        tokens = np.array([rows[0][kept : kept + 5], rows[1][12 - kept : 17 - kept]])
        columns = np.tile(np.arange(5), (2, 1))
        found = stepper.step(state, tokens, columns=columns)
        assert largest_error([*found], [wanted[0][kept : kept + 5], wanted[1][12 - kept : 17 - kept]]) < EXACT


def test_a_second_turn_equals_the_whole_text_at_once() -> None:
    rows, spec = texts([30]), funnel()
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, [[11], *[[1]] * 5, [9], *[[1]] * 5])
    assert largest_error(found, whole(Gemma2ForCausalLM, spec, rows)) < EXACT


# Steps that are wrong on purpose. Each must be seen, or the tests above prove nothing.


def _padded_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written as if every row had the longest row's tokens."""
    commit = State.commit

    def wrong(self: State, lengths: Any, fresh: Any) -> None:
        own, self.lengths = self.lengths, np.full_like(self.lengths, self.lengths.max())
        commit(self, self.lengths + (lengths - own), fresh)
        self.lengths = lengths.copy()

    monkeypatch.setattr(State, "commit", wrong)


def _window_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = queries.attention_bias
    wider: Callable[..., Any] = lambda *args, sliding_window, **more: bias(  # noqa: E731
        *args, sliding_window=None if sliding_window is None else sliding_window + 1, **more
    )
    monkeypatch.setattr(queries, "attention_bias", wider)


@pytest.mark.parametrize(
    "fault", [reads_one_early, stale_change, _padded_index, forgets_the_open_window, _window_off_by_one]
)
def test_a_wrong_step_is_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, spec = texts([20, 26, 23]), funnel()
    wanted = whole(Gemma2ForCausalLM, spec, rows)
    fault(monkeypatch)
    _, found = read(eager_stepper(Gemma2ForCausalLM, spec), rows, steps_of([20, 26, 23], [4, 10, 7]))
    assert largest_error(found, wanted) > 1e-3


def test_bytes_of_a_token() -> None:
    """Layers before and after the funnel hold a key and a value for each token, those within it for each slot."""
    dense, short = (eager_stepper(Gemma2ForCausalLM, spec) for spec in (None, funnel(4)))
    held = [bytes_at(stepper, 512) - bytes_at(stepper, 256) for stepper in (dense, short)]
    layer, hidden = 2 * 2 * 8 * 8, 40 * 8
    assert held[0] == 256 * 4 * layer
    assert held[1] == 256 * (2 * layer + hidden) + 64 * (2 * layer + hidden)


def bytes_at(stepper: Stepper, tokens: int) -> int:
    state = stepper.new_state(1, limit=tokens)
    state.reserve(np.array([tokens]))
    return state.nbytes


def test_rows_chosen_repeated_and_joined() -> None:
    stepper, rows = eager_stepper(Gemma2ForCausalLM, funnel()), texts([16, 13, 18])
    wanted = whole(Gemma2ForCausalLM, funnel(), rows)
    state, _ = read(stepper, [row[:-4] for row in rows], [[len(row) - 4 for row in rows]])
    alone, _ = read(stepper, [rows[1][:-4]], [[9]])
    state.select([2, 0, 0])
    state.join(alone)
    order = [2, 0, 0, 1]
    for at in range(4):
        found = stepper.step(state, np.array([[rows[index][at - 4]] for index in order]))
        assert largest_error([*found[:, 0]], [wanted[index][at - 4] for index in order]) < EXACT


@pytest.mark.parametrize(
    ("tokens", "counts", "message"),
    [
        ([[1, 2]], None, r"(?s)do not fit the cache.*shape \(1, 2\).*\[2, length >= 1\]"),
        ([1, 2], None, "do not fit the cache"),
        ([[], []], None, "do not fit the cache"),
        ([[1, 2], [3, 4]], [2], r"(?s)invalid counts of tokens.*\[2\].*2 numbers of 0 to 2"),
        ([[1, 2], [3, 4]], [2, 3], r"(?s)invalid counts.*\[2, 3\]"),
        ([[1, 2], [3, 4]], [-1, 2], r"(?s)invalid counts.*\[-1, 2\]"),
        ([[1, 2], [3, 61]], [2, 2], r"(?s)outside the model's vocabulary.*\[61\].*0 to 60"),
        ([[1, -1], [3, 4]], [2, 2], r"(?s)outside the model's vocabulary.*\[-1\]"),
    ],
)
def test_a_chunk_that_does_not_fit_leaves_the_state(
    tokens: list[Any], counts: list[int] | None, message: str, stepper: Stepper
) -> None:
    state, _ = read(stepper, texts([4, 4]), [[4, 2]])
    with pytest.raises(SpecError, match=message):
        stepper.step(state, np.array(tokens), None if counts is None else np.array(counts))
    assert state.lengths.tolist() == [4, 2]
    stepper.step(state, np.array([[5, 61], [-1, 99]]), np.array([1, 0]))  # what is not read may be anything
    assert state.lengths.tolist() == [5, 2]


@pytest.mark.parametrize("lengths", [[5, 2], [-1, 2], [4], [4, 2, 0]], ids=str)
def test_rows_are_not_cropped_to_more_than_they_have(lengths: list[int], stepper: Stepper) -> None:
    state, _ = read(stepper, texts([4, 4]), [[4, 2]])
    with pytest.raises(SpecError, match=r"(?s)more tokens than it has.*0 to \[4, 2\]"):
        state.crop(np.array(lengths))
    assert state.lengths.tolist() == [4, 2]


@pytest.fixture(scope="module")
def stepper() -> Stepper:
    return eager_stepper(Gemma2ForCausalLM, funnel())


def test_steps_do_not_depend_on_each_other() -> None:
    """Two texts that take turns with one stepper."""
    stepper, rows = eager_stepper(Gemma2ForCausalLM, funnel()), texts([15, 15])
    wanted = whole(Gemma2ForCausalLM, funnel(), rows)
    states = [stepper.new_state(1), stepper.new_state(1)]
    for at, (state, row, logits) in itertools.product(range(15), zip(states, rows, wanted, strict=True)):
        found = stepper.step(state, np.array([[row[at]]]))
        assert largest_error([found[0, 0]], [logits[at]]) < EXACT
