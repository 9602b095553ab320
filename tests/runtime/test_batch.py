"""A text of a batch is what it is alone, whoever joins, leaves, fails or is given up beside it."""

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stepping import eager_stepper, texts
from tokenizers_of_words import save_tokenizer
from transformers import AutoTokenizer, Gemma2ForCausalLM

from funnel_export import Batch, FunnelSpec, Request, Sampling, SpecError
from funnel_export.runtime import batch as batching
from funnel_export.runtime.batch import Token
from funnel_export.runtime.invariants import faults_of_batch
from funnel_export.runtime.state import bytes_of
from funnel_export.runtime.stepper import Stepper

LENGTHS, NEW = [5, 11, 1, 8], [8, 13, 10, 6]
FUNNELS = [None, *(FunnelSpec(pool_layer=1, recover_layer=3, stride=stride) for stride in (1, 2, 3))]
FUNNEL = FUNNELS[-1]


@functools.cache
def eager(spec: FunnelSpec | None = FUNNEL) -> Stepper:
    return eager_stepper(Gemma2ForCausalLM, spec)


def requests(**options: Any) -> list[Request]:
    rows = zip(texts(LENGTHS), NEW, strict=True)
    return [Request(prompt=tuple(row), max_new_tokens=new, **options) for row, new in rows]


def step(batch: Batch) -> list[Token]:
    tokens = batch.next()
    assert faults_of_batch(batch) == []
    return tokens


def finish(batch: Batch, found: dict[int, list[Any]] | None = None) -> dict[int, list[Any]]:
    """Run a batch to its end; the tokens of each text."""
    found = {} if found is None else found
    while batch.keys:
        for token in step(batch):
            found.setdefault(token.key, []).append(token.token)
    return found


def alone(stepper: Stepper, request: Request, **options: Any) -> list[Any]:
    batch = Batch(stepper=stepper, max_rows=1, **options)
    return finish(batch, {batch.insert(request): []})[0]


def spread(batch: Batch, wanted: list[Request]) -> dict[int, list[Any]]:
    """Insert a text before each of the first steps, and run to the end."""
    found: dict[int, list[Any]] = {}
    for request in wanted:
        batch.insert(request)
        for token in step(batch):
            found.setdefault(token.key, []).append(token.token)
    return finish(batch, found)


@pytest.mark.parametrize("spec", FUNNELS, ids=lambda spec: "dense" if spec is None else f"S={spec.stride}")
@pytest.mark.parametrize("aligned", [True, False])
def test_a_text_is_what_it_is_alone(spec: FunnelSpec | None, aligned: bool) -> None:
    stepper = eager(spec)
    found = spread(Batch(stepper=stepper, max_rows=4, chunk=4, aligned=aligned), requests())
    assert found == {key: alone(stepper, request, chunk=4) for key, request in enumerate(requests())}
    assert [len(found[key]) for key in range(4)] == NEW


def test_a_seed_is_a_texts_own() -> None:
    sampled = [
        Request(prompt=each.prompt, max_new_tokens=each.max_new_tokens, sampling=Sampling(temperature=1.5, seed=seed))
        for seed, each in enumerate(requests())
    ]
    stepper = eager()
    found = spread(Batch(stepper=stepper, max_rows=4), sampled)
    assert found == {key: alone(stepper, request) for key, request in enumerate(sampled)}
    assert found != {key: alone(stepper, request) for key, request in enumerate(requests())}


class Failing:
    """A session, or a function, that is interrupted."""

    def run(self, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    __call__ = run


def interrupted(batch: Batch, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A step that is interrupted in a graph, or after the graphs, in the choice of a token."""
    with monkeypatch.context() as patch:
        if where == "choice":
            patch.setattr(batching, "_chosen", Failing())
        else:
            patch.setitem(batch.stepper.sessions, where, Failing())
        with pytest.raises(KeyboardInterrupt):
            batch.next()


@pytest.mark.parametrize("where", ["entry", "middle", "exit", "choice"])
def test_a_step_that_is_interrupted_leaves_the_batch(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = _with_an_interruption(where, monkeypatch)
    assert found == wanted


def _with_an_interruption(where: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    stepper, sampling = eager(), Sampling(temperature=1.5, seed=3)
    wanted = {key: alone(stepper, request) for key, request in enumerate(requests(sampling=sampling))}
    batch, found = Batch(stepper=stepper, max_rows=4, aligned=False), dict[int, list[Any]]()
    for request in requests(sampling=sampling):
        batch.insert(request)
        held = batch.held
        interrupted(batch, monkeypatch, where)
        assert batch.held is held
        for token in step(batch):
            found.setdefault(token.key, []).append(token.token)
    return finish(batch, found), wanted


def test_a_batch_that_changes_its_state_in_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching.copy, "copy", lambda value: value)
    with pytest.raises((AssertionError, IndexError)):
        _with_an_interruption("choice", monkeypatch)


def test_texts_that_are_given_up() -> None:
    """One while its prompt is read, one while it waits for its phase, one that has joined; then all places are free."""
    request, stepper = requests()[1], eager()
    batch = Batch(stepper=stepper, max_rows=4, chunk=8)
    kept = batch.insert(request)
    reads = batch.insert(Request(prompt=(5,) * 20, max_new_tokens=5))
    found: dict[int, list[Any]] = {kept: []}
    for _ in range(3):
        found[kept] += [token.token for token in step(batch)]
    assert [each.row.key for each in batch.held.apart] == [reads]
    batch.remove(reads)
    waits = batch.insert(Request(prompt=(5,) * (3 + int(batch.held.state.lengths[0]) % 3), max_new_tokens=5))
    found[kept] += [token.token for token in step(batch) if token.key == kept]
    assert [each.ready for each in batch.held.apart] == [True]
    batch.remove(waits)
    joins = batch.insert(Request(prompt=(5,) * 3, max_new_tokens=9))
    while joins not in [row.key for row in batch.held.together]:
        found[kept] += [token.token for token in step(batch) if token.key == kept]
    batch.remove(joins)
    batch.remove(joins)
    assert finish(batch, found) == {kept: alone(stepper, request, chunk=8)}
    assert not batch.held.nbytes


def test_any_order_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts come, go and are interrupted at random."""
    stepper, chance = eager(), random.Random(0)  # noqa: S311 - no secret
    pool = [Request(prompt=tuple(row), max_new_tokens=9) for row in texts([*range(1, 13)])]
    wanted = [alone(stepper, request, chunk=5) for request in pool]
    batch = Batch(stepper=stepper, max_rows=4, chunk=5)
    numbers: dict[int, int] = {}
    found: dict[int, list[Any]] = {}
    for _ in range(90):
        event = chance.random()
        number = chance.randrange(len(pool))
        if event < 0.3 and batch.has_room(pool[number]):
            key = batch.insert(pool[number])
            numbers[key], found[key] = number, []
        elif event < 0.35 and batch.keys:
            batch.remove(chance.choice(batch.keys))
        elif event < 0.4 and batch.held.together:
            interrupted(batch, monkeypatch, "choice")
        for token in step(batch):
            found[token.key].append(token.token)
    assert len(found) > 15
    for key, tokens in found.items():
        assert tokens == wanted[numbers[key]][: len(tokens)]
    assert sum(len(tokens) == 9 for tokens in found.values()) > 10


def test_rows_and_bytes_are_limited() -> None:
    stepper = eager()
    short, long = (Request(prompt=(5,), max_new_tokens=new) for new in (10, 200))
    two_long = bytes_of(stepper.layout, 2, 256)
    batch = Batch(stepper=stepper, max_rows=3, max_bytes=two_long)
    keys = [batch.insert(short), batch.insert(short)]
    assert batch.has_room(short)
    assert not batch.has_room(long), "three rows as long as the longest"
    with pytest.raises(SpecError, match=r"(?s)batch is full.*2 texts.*has_room"):
        batch.insert(long)
    batch.remove(keys[0])
    batch.insert(long)
    assert not batch.has_room(short)
    with pytest.raises(SpecError, match=r"(?s)longer than the batch takes.*511 tokens.*at most [\d,]+ bytes"):
        Batch(stepper=stepper, max_rows=3, max_bytes=two_long // 2).insert(
            Request(prompt=(5,) * 501, max_new_tokens=10)
        )


def test_memory_follows_the_rows_that_are_left() -> None:
    stepper = eager()
    batch = Batch(stepper=stepper, max_rows=2)
    long = batch.insert(Request(prompt=(5,) * 300, max_new_tokens=10))
    batch.insert(Request(prompt=(5,), max_new_tokens=20))
    for _ in range(5):
        step(batch)
    assert batch.held.nbytes == bytes_of(stepper.layout, 2, 384)
    batch.remove(long)
    step(batch)
    assert batch.held.nbytes == bytes_of(stepper.layout, 1, 128)


def middle_runs(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the slots of each run of the middle with several rows, as its session sees them."""
    ran, session = list[int](), batch.stepper.sessions["middle"]
    seen: Callable[[Any], Any] = lambda inputs: ran.append(len(inputs["slots"])) or session.run(inputs)  # noqa: E731
    monkeypatch.setitem(batch.stepper.sessions, "middle", type("Seen", (), {"run": staticmethod(seen)})())
    return ran


@pytest.mark.parametrize("aligned", [True, False])
def test_the_share_of_steps_that_run_the_middle(aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of three phases close a window in every step, unless they wait for each other."""
    batch = Batch(stepper=eager(), max_rows=3, aligned=aligned)
    for row in texts([4, 5, 6]):
        batch.insert(Request(prompt=tuple(row), max_new_tokens=50))
    while len(batch.held.together) < 3:
        step(batch)
    before = batch.held
    ran = middle_runs(batch, monkeypatch)
    for _ in range(30):
        step(batch)
    steps, middle = batch.held.steps - before.steps, batch.held.middle_steps - before.middle_steps
    assert (steps, middle, ran) == (30, len(ran), [3] * (10 if aligned else 30))
    assert 0 < batch.middle_share <= 1


def test_a_text_waits_less_than_a_window() -> None:
    """From the step that reads its prompt to its second token."""
    for first, second in itertools.product(range(1, 5), repeat=2):
        batch = Batch(stepper=eager(), max_rows=2)
        batch.insert(Request(prompt=(5,) * first, max_new_tokens=30))
        step(batch)
        key = batch.insert(Request(prompt=(5,) * second, max_new_tokens=5))
        steps = [[token.key for token in step(batch)] for _ in range(4)]
        assert key in steps[0]
        assert any(key in keys for keys in steps[1:4])


def test_a_long_prompt_does_not_stop_the_others() -> None:
    batch = Batch(stepper=eager(), max_rows=3, chunk=8)
    quick = batch.insert(Request(prompt=(5,), max_new_tokens=20))
    step(batch)
    long = batch.insert(Request(prompt=(5,) * 40, max_new_tokens=2))
    later = batch.insert(Request(prompt=(6,), max_new_tokens=2))
    steps = [{token.key for token in step(batch)} for _ in range(6)]
    assert steps == [{quick}] * 4 + [{quick, long}] + [steps[5]]
    assert {quick, later} <= steps[5], "prompts are read in the order of their arrival"


def test_logits_that_are_not_finite_end_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, (first, second, *_) = eager(), requests()
    wanted = alone(stepper, second)
    batch = Batch(stepper=stepper, max_rows=2, aligned=False)
    keys = [batch.insert(first), batch.insert(second)]
    found = {key: [] for key in keys}
    for token in step(batch):
        found[token.key].append(token.token)
    original = Stepper.step

    def spoiled(self: Stepper, state: Any, *arguments: Any) -> Any:
        logits = original(self, state, *arguments)
        logits[0, :, 3] = np.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", spoiled)
        tokens = step(batch)
    assert (tokens[0].key, tokens[0].token, tokens[0].finish_reason) == (keys[0], None, "error")
    found[keys[1]].append(tokens[1].token)
    assert finish(batch, found)[keys[1]] == wanted


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def told(stepper: Stepper, tokenizer: Any, **options: Any) -> tuple[list[Token], str]:
    batch = Batch(stepper=stepper, max_rows=1, tokenizer=tokenizer)
    sampling = Sampling(temperature=2.0, seed=1)  # so that no word comes twice
    batch.insert(Request(prompt=(5, 6, 7), max_new_tokens=12, sampling=sampling, **options))
    tokens = []
    while batch.keys:
        tokens += step(batch)
    return tokens, "".join(token.text for token in tokens)


def test_text_stops_at_a_token_or_a_string(tokenizer: Any) -> None:
    stepper = eager()
    tokens, text = told(stepper, tokenizer)
    words = text.split()
    assert text == tokenizer.decode([token.token for token in tokens])
    assert [token.finish_reason for token in tokens] == [None] * 11 + ["length"]
    ends = tokens[4].token
    stopped, cut = told(stepper, tokenizer, stop_tokens=frozenset({ends}))
    assert (len(stopped), cut, stopped[-1].finish_reason) == (5, " ".join(words[:4]), "stop")
    across = f"{words[4][1:]} {words[5]}"
    stopped, cut = told(stepper, tokenizer, stop_strings=("nowhere", across))
    assert cut == text[: text.index(across)]
    assert (len(stopped), stopped[-1].finish_reason) == (6, "stop")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Request(prompt=(), max_new_tokens=1), "prompt is empty"),
        (lambda: Request(prompt=(5,), max_new_tokens=0), "max_new_tokens must be at least 1"),
        (lambda: Request(prompt=(5, -1), max_new_tokens=1), "outside the model's vocabulary"),
        (lambda: Request(prompt=(5,), max_new_tokens=1, stop_strings=("",)), "stop string is empty"),
        (lambda: Sampling(temperature=float("nan")), "invalid temperature"),
        (lambda: Sampling(top_k=-1), "invalid top_k"),
        (lambda: Sampling(top_p=0), "invalid top_p"),
        (lambda: Sampling(seed=2**64), "invalid seed"),
        (lambda: new_batch(max_rows=0), "max_rows must be at least 1"),
        (lambda: new_batch().insert(Request(prompt=(5,) * 500, max_new_tokens=13)), r"(?s)longer.*at most 512"),
        (lambda: new_batch().insert(Request(prompt=(2**70,), max_new_tokens=1)), r"(?s)vocabulary.*0 to 60"),
        (
            lambda: new_batch().insert(Request(prompt=(5,), max_new_tokens=1, stop_strings=("a",))),
            "stop strings need a tokenizer",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call()


def new_batch(**options: Any) -> Batch:
    return Batch(**{"stepper": eager(), "max_rows": 2} | options)


def _spoil(name: str, value: Any) -> Callable[[Batch], None]:
    return lambda batch: setattr(batch.held.state, name, value)


def _spoil_array(change: Callable[[Any], Any]) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        arrays = batch.held.state.arrays
        arrays["hidden"] = change(arrays["hidden"])

    return spoil


def _spoil_held(**changes: Any) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        batch.held = batching.replace(batch.held, **{name: change(batch) for name, change in changes.items()})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_spoil("lengths", np.array([9])), "tokens in its caches"),
        (_spoil("lengths", np.array([600])), "with a capacity of"),
        (_spoil("lengths", np.array([8], np.int32)), "int32"),
        (_spoil("capacity", 1000), "with a limit of"),
        (_spoil_array(lambda array: array.astype(np.float16)), "in float16, wanted"),
        (_spoil_array(lambda array: array[:, :-1]), "has shape"),
        (_spoil_array(lambda array: array * np.nan), "not finite in row 0"),
        (lambda batch: batch.held.state.arrays.pop("changes"), "arrays"),
        (_spoil_held(together=lambda batch: ()), "1 rows of caches for 0 texts"),
        (_spoil_held(apart=lambda batch: (batching.Apart(batch.held.together[0], batch.held.state),)), "repeated"),
        (_spoil_held(middle_steps=lambda batch: 100), "ran the middle"),
        (lambda batch: setattr(batch, "max_bytes", 1), "at most 1"),
        (lambda batch: setattr(batch, "max_rows", 0), "at most 0"),
    ],
)
def test_a_broken_invariant_is_seen(spoil: Callable[[Batch], Any], fault: str) -> None:
    batch = new_batch()
    batch.insert(Request(prompt=(5,) * 7, max_new_tokens=20))
    step(batch)
    step(batch)
    spoil(batch)
    assert any(fault in each for each in faults_of_batch(batch)), faults_of_batch(batch)


def test_rows_of_other_phases_are_seen() -> None:
    batch = Batch(stepper=eager(), max_rows=2, aligned=False)
    for length in (4, 5):
        batch.insert(Request(prompt=(5,) * length, max_new_tokens=20))
    step(batch)
    step(batch)
    batch.aligned = True
    assert any("close their windows together" in fault for fault in faults_of_batch(batch))
