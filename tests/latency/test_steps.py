"""Runners of bundles that generate text: prompts and steps after them, in PyTorch and in the targets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exported import Recipe
from models import random_rows

from funnel_export import FunnelSpec, apply_funnel
from funnel_export.bundle.load import Bundle
from funnel_export.latency import in_pytorch
from funnel_export.latency.in_pytorch import TorchModel
from funnel_export.latency.in_target import StagesModel
from funnel_export.latency.shape import steps_of
from funnel_export.latency.traffic import predicted_step_ratio, step_bytes
from funnel_export.runtime.state import bytes_per_token
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Task
from funnel_export.verify.reference import load_model

PAST = Task.TEXT_GENERATION_WITH_PAST
DENSE, FUNNEL = Recipe(task=PAST, funnel=None), Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"))
IDS = random_rows([11, 11])
STEPS = 6


def in_targets(target: str) -> Callable[[Bundle], Any]:
    """How to load a bundle in a target."""
    return lambda bundle: StagesModel(bundle, target, ())


RUNTIMES: dict[str, Callable[[Bundle], Any]] = {
    "eager": lambda bundle: TorchModel(bundle, None, "cpu", compiled=False),
    "onnxruntime": in_targets("onnxruntime"),
    "openvino": in_targets("openvino"),
}


def single_pass(bundle: Bundle, ids: list[list[int]]) -> np.ndarray:
    """The logits of the last row's last token in one pass of Hugging Face's model without a cache."""
    model = load_model(bundle, torch.float32)
    if bundle.spec.funnel is not None:
        apply_funnel(model, bundle.spec.funnel)
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=False).logits[-1, -1].numpy()


@pytest.mark.parametrize("recipe", [DENSE, FUNNEL], ids=["dense", "funnel"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_last_logits_are_those_of_a_single_pass(runtime: str, recipe: Recipe) -> None:
    bundle = recipe.bundle()
    model = RUNTIMES[runtime](bundle)
    wanted = single_pass(bundle, IDS)
    for steps in (0, STEPS):
        np.testing.assert_allclose(model.run(IDS, steps), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


class Counted:
    """A session that counts its runs."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0

    def run(self, inputs: Any) -> Any:
        """See `Session.run`."""
        self.runs += 1
        return self.session.run(inputs)


def test_each_call_of_a_target_runs_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call reads 6 tokens after the same 5, one by one, and so runs the middle twice at S = 3."""
    lengths: list[int] = []
    step = Stepper.step

    def watched(self: Stepper, state: Any, tokens: Any, *rest: Any) -> Any:
        lengths.append(int(state.lengths[0]))
        return step(self, state, tokens, *rest)

    monkeypatch.setattr(Stepper, "step", watched)
    model = StagesModel(FUNNEL.bundle(), "onnxruntime", ())
    sessions = {role: Counted(session) for role, session in model._stepper.sessions.items()}
    model._stepper.sessions = sessions  # type: ignore[assignment]  # as much of a session as is used
    call = model.prepare(IDS, STEPS)
    before = {role: session.runs for role, session in sessions.items()}
    lengths.clear()
    for _ in range(2):
        call()
    assert lengths == [5, 6, 7, 8, 9, 10] * 2
    runs = {role: session.runs - before[role] for role, session in sessions.items()}
    assert runs == {"entry": 2 * STEPS, "middle": 2 * STEPS // 3, "exit": 2 * STEPS}


@pytest.mark.parametrize("recipe", [DENSE, FUNNEL], ids=["dense", "funnel"])
def test_each_call_of_pytorch_begins_with_the_same_cache(recipe: Recipe) -> None:
    """The windows are shorter than the text, so a cache that is only cropped would have lost tokens."""
    model = TorchModel(recipe.bundle(), None, "cpu", compiled=False)
    call = model._prepared(IDS, STEPS)
    first = call()
    assert torch.equal(call(), first)
    assert torch.equal(call(), first)


def test_a_cache_that_is_not_restored_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_pytorch._Snapshot, "restore", lambda *_: None)
    call = TorchModel(DENSE.bundle(), None, "cpu", compiled=False)._prepared(IDS, STEPS)
    assert not torch.equal(call(), call())


def test_a_call_runs_whole_windows() -> None:
    assert [steps_of(stride) for stride in (1, 2, 3, 4, 7, 16)] == [8, 8, 9, 8, 14, 16]


def test_bytes_of_a_step_are_those_of_the_weights_and_caches() -> None:
    """Counted again from the tensors: every matrix once, and of the caches what is not beyond a window of 5."""
    past, rows = 40, 3
    bundle = DENSE.bundle()
    stepper = StagesModel(bundle, "onnxruntime", ())._stepper
    matrices = sum(tensor.numel() for tensor in load_model(bundle, torch.float32).parameters() if tensor.ndim == 2)
    entry = bytes_per_token(stepper.layout) / 4
    wanted = 4 * matrices + rows * (2 * past + 2 * 4) * entry
    assert step_bytes(bundle.family, bundle.architecture, bundle.spec, past, rows) == wanted


@pytest.mark.slow
def test_a_funnel_reads_its_middle_in_one_of_s_steps() -> None:
    """Two of four equal layers at S = 3: a third of their weights, and a ninth of their caches.

    One layer in the funnel and one outside of it slide over 5 tokens, which are 2 slots: they read 1 and 4 entries.
    """
    bundle, past = FUNNEL.bundle(), 30
    model = bundle.family, bundle.architecture
    dense = DENSE.bundle().spec
    head = 4 * bundle.architecture.vocab_size * bundle.architecture.hidden_size
    weights = (step_bytes(*model, dense, 0) - head) / 4
    entry = (step_bytes(*model, dense, 1) - step_bytes(*model, dense, 0)) / 4
    found = step_bytes(*model, bundle.spec, past)
    assert found == pytest.approx(head + weights * (2 + 2 / 3) + entry * (past + 4 + (past / 3 + 1) / 3))
    ratio = predicted_step_ratio(*model, bundle.spec, past)
    assert ratio == pytest.approx(found / step_bytes(*model, dense, past))
    narrow = Recipe(task=PAST, funnel=FUNNEL.funnel, dtype="bfloat16").bundle().spec
    assert step_bytes(*model, narrow, past) == found / 2


def test_bytes_of_a_token_are_those_that_a_state_grows_by() -> None:
    for recipe in (DENSE, FUNNEL):
        stepper = StagesModel(recipe.bundle(), "onnxruntime", ())._stepper
        state = stepper.new_state(1)
        sizes = []
        for length in (128, 512):  # 43 and 171 slots
            state.reserve(np.array([length]))
            sizes.append(state.nbytes)
        assert (sizes[1] - sizes[0]) / 384 == pytest.approx(bytes_per_token(stepper.layout), rel=1e-3)
