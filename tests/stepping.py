"""Texts read in steps: steppers over eager PyTorch in float64, and the logits of every token, in any chunks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from models import random_rows, tiny_model, with_random_maps
from numpy.typing import NDArray
from transformers import PreTrainedModel

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import Port
from funnel_export.bundle.signature import Signature, signatures_of
from funnel_export.families.registry import family_of
from funnel_export.funnel import apply_funnel
from funnel_export.funnel.maps import attach_maps, make_maps
from funnel_export.funnel.stages import StageModule
from funnel_export.runtime import stepper as stepper_module
from funnel_export.runtime.invariants import faults_of_step
from funnel_export.runtime.state import State
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.stages import stages_of
from funnel_export.verify.float64 import Float64

PAST = Task.TEXT_GENERATION_WITH_PAST
Logits = NDArray[Any]


@dataclass
class _Graph:
    """As much of a bundle's graph as a stepper asks for."""

    inputs: list[Port]


@dataclass
class _Bundle:
    """As much of a bundle as a stepper asks for."""

    spec: ExportSpec
    architecture: Any
    graphs: dict[str, _Graph]


class EagerStage:
    """A stage in eager PyTorch, as a session."""

    def __init__(self, module: StageModule, signature: Signature) -> None:
        self.module, self.signature = module, signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[port.name])) for port in self.signature.inputs]
        with torch.no_grad(), Float64():
            results = self.module(*given)
        return {port.name: result.numpy() for port, result in zip(self.signature.outputs, results, strict=True)}


def eager_stepper(cls: type[PreTrainedModel], funnel: FunnelSpec | None, **overrides: Any) -> Stepper:
    """The stages of a tiny model in eager float64."""
    with Float64():
        model = tiny_model(cls, **overrides)
    family, _ = family_of(model)
    attach_maps(family.base_of(model), make_maps(funnel, model.config.hidden_size))
    with_random_maps(model)
    spec = ExportSpec(task=PAST, dtype=Dtype.FLOAT32, funnel=funnel)
    architecture = family.read_architecture(model.config.to_dict())
    signatures, stages = signatures_of(spec, architecture), stages_of(funnel, architecture.num_hidden_layers)
    modules = {
        role: EagerStage(StageModule(model, family, stages[role], [port.name for port in each.inputs]), each)
        for role, each in signatures.items()
    }
    graphs = {role: _Graph([_port(port) for port in each.inputs]) for role, each in signatures.items()}
    stepper = Stepper(cast(Bundle, _Bundle(spec, architecture, graphs)), cast(Any, modules))
    stepper.layout = {name: replace(held, dtype=np.dtype(np.float64)) for name, held in stepper.layout.items()}
    return stepper


def _port(declared: Any) -> Port:
    return Port(name=declared.name, kind=declared.kind, dtype=str(declared.dtype), shape=[*declared.axes])


def whole(
    cls: type[PreTrainedModel], funnel: FunnelSpec | None, rows: Sequence[Sequence[int]], **overrides: Any
) -> list[Logits]:
    """The logits of whole texts in one pass of Hugging Face's model with the funnel, [tokens, vocab_size] each."""
    with Float64():
        model: Any = tiny_model(cls, **overrides)
    if funnel is not None:
        with_random_maps(apply_funnel(model, funnel))
    with torch.no_grad(), Float64():
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].numpy() for row in rows]


def read(
    stepper: Stepper, rows: Sequence[Sequence[int]], chunks: Iterator[Sequence[int]] | Sequence[Sequence[int]]
) -> tuple[State, list[Logits]]:
    """Read rows in chunks of these numbers of tokens a row; returns the state and the logits of every token read."""
    state = stepper.new_state(len(rows))
    logits: list[list[Logits]] = [[] for _ in rows]
    for counts in chunks:
        read_chunk(stepper, state, rows, counts, logits)
    return state, [np.concatenate(each) for each in logits]


def read_chunk(
    stepper: Stepper, state: State, rows: Sequence[Sequence[int]], counts: Sequence[int], logits: list[list[Logits]]
) -> None:
    """Read the next tokens of each row, in one batch that is padded on the right with tokens that must not matter."""
    begins, length = state.lengths.copy(), max(counts)
    tokens = np.full((len(rows), length), 7)
    for index, (row, begin, count) in enumerate(zip(rows, begins, counts, strict=True)):
        tokens[index, :count] = row[begin : begin + count]
    columns = np.tile(np.arange(length), (len(rows), 1))
    found = stepper.step(state, tokens, np.array(counts), columns)
    assert faults_of_step(begins, counts, state, found) == []
    for each, row_logits, count in zip(found, logits, counts, strict=True):
        row_logits.append(each[:count])


def steps_of(lengths: Sequence[int], prompts: Sequence[int], chunk: int | None = None) -> list[list[int]]:
    """The chunks of texts of equal length after their prompts: prompts (in chunks if given), then one token a step."""
    chunks, left = [], list(prompts)
    while any(left):
        now = [min(each, chunk or each) for each in left]
        left = [each - taken for each, taken in zip(left, now, strict=True)]
        chunks.append(now)
    rest = [length - prompt for length, prompt in zip(lengths, prompts, strict=True)]
    return [*chunks, *([int(at < each) for each in rest] for at in range(max(rest)))]


def largest_error(found: Sequence[Logits], wanted: Sequence[Logits]) -> float:
    """The largest difference over all rows."""
    return max(float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True))


def texts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random rows of these lengths."""
    return random_rows(list(lengths), seed)


# Steps that are wrong on purpose.


def reads_one_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = np.clip
    monkeypatch.setattr(stepper_module.np, "clip", lambda a, low, high: clip(clip(a, low, high) - 1, 0, None))


def stale_change(monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[int, Any] = {}
    last = State.last_change
    monkeypatch.setattr(State, "last_change", lambda self: first.setdefault(id(self), last(self)))


def forgets_the_open_window(monkeypatch: pytest.MonkeyPatch) -> None:
    last = State.last_hidden
    monkeypatch.setattr(State, "last_hidden", lambda self, count: last(self, count) * 0)
