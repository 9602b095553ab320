"""A training run from the dense model to the trained one, with the losses before and after."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from funnel_export.funnel import apply_funnel
from funnel_export.progress import Progress, no_progress
from funnel_export.quality.rows import TokenRows
from funnel_export.quality.scorers import InPyTorch, with_same_weights
from funnel_export.quality.scores import score
from funnel_export.spec.training import Objective
from funnel_export.training.adapt_report import Losses, Point
from funnel_export.training.loading import load
from funnel_export.training.objectives import HiddenLoss, KLLoss, Loss, TargetLoss
from funnel_export.training.plan import Plan
from funnel_export.training.running import run
from funnel_export.training.student import Student, autocast
from funnel_export.training.texts import Texts, commonest
from funnel_export.training.trained import choose_weights


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run made."""

    model: Any
    """Hugging Face's model with its funnel and merged adapters, in the dtype of the checkpoint, on the CPU."""
    losses: Losses
    history: list[Point]
    steps: int
    seen: int
    """Tokens that the model was trained on, with repetitions."""
    trained_weights: int
    seconds: float


def train(
    plan: Plan, texts: Texts, folder: Path, device: torch.device, begin: Callable[[], None], progress: Progress
) -> Outcome:
    """Train a model, from the last state in a folder if there is one.

    Args:
        plan: the run.
        texts: rows to train on, and held-out ones.
        folder: where the state is saved.
        device: device to train on.
        begin: called before the first step, when all that can fail without training is done.
        progress: called with each step.
    """
    start, spec = time.monotonic(), plan.training
    progress("loading the model")
    dense = load(plan, texts.architecture).to(device)
    model = with_same_weights(dense)
    if plan.funnel is not None:
        apply_funnel(model, plan.funnel)
    if spec.checkpointing:
        checkpoint_activations(model)
    trained = choose_weights(model, spec, plan.funnel)

    def measure(each: Any) -> float:
        each.eval()
        with autocast(device, getattr(torch, plan.dtype)):
            return _loss(each, texts.held_out, texts, device)

    progress("measuring the loss")
    before = measure(model)
    has_dense = plan.funnel is not None and not (plan.from_scratch or plan.has_new_head)
    dense_loss = measure(dense) if has_dense else None
    student = Student(_objective(plan, model, dense, texts), trained.weights, getattr(torch, plan.dtype))
    begin()
    done = run(
        student,
        texts.training.rows,
        spec,
        model=model,
        pad=max(0, texts.architecture.pad_token_id or 0),
        device=device,
        folder=folder,
        measure=lambda: measure(model),
        progress=progress,
    )
    progress("measuring the loss")
    final = trained.finish(getattr(torch, plan.source.dtype))
    after = measure(final)
    return Outcome(
        model=final.cpu(),
        losses=Losses(dense=dense_loss, before=before, after=after),
        history=done.history,
        steps=done.steps,
        seen=done.seen,
        trained_weights=sum(weight.numel() for weight in trained.weights.values()),
        seconds=time.monotonic() - start,
    )


def checkpoint_activations(model: Any) -> None:
    """Compute the activations of layers again in the backward pass."""
    newer = hasattr(model, "activation_checkpointing_enable")  # its name from transformers 5.20 on
    enable = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _objective(plan: Plan, model: Any, dense: Any, texts: Texts) -> Loss:
    spec = plan.training
    if spec.objective is Objective.TARGETS:
        return TargetLoss(model)
    assert plan.funnel is not None
    if spec.objective is Objective.HIDDEN:
        return HiddenLoss(model, dense, plan.funnel)
    most = texts.architecture.vocab_size
    return KLLoss(model, dense, commonest(texts.training, spec.vocabulary or most, most))


def _loss(model: Any, rows: TokenRows, texts: Texts, device: torch.device) -> float:
    """Cross entropy on rows, in nats a token or label."""
    scorer = InPyTorch(model, device)
    found = score(rows, scorer, None, architecture=texts.architecture, progress=no_progress)
    return float(found.model.nats.mean())
