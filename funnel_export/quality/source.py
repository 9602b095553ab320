"""The model to evaluate: a checkpoint in PyTorch, or a bundle in a target or as engines.

This module does not import torch, so that a model that cannot be opened is refused at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from funnel_export.bundle.engine import engine_names
from funnel_export.bundle.load import Bundle, is_bundle, load_bundle
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint, is_here
from funnel_export.errors import CheckpointError, SpecError, TargetUnavailableError
from funnel_export.progress import Progress
from funnel_export.quality.labels import Labels
from funnel_export.spec.choices import AUTO, EAGER, Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.verify.candidates import Candidate, candidates

if TYPE_CHECKING:
    from funnel_export.quality.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Source:
    """A model, before anything of it is loaded."""

    name: str
    """The name that the user gave; for a model on the Hub, with its commit."""
    checkpoint: Checkpoint
    """Config and weights; a bundle is a checkpoint too."""
    spec: ExportSpec
    """What is computed. Its dtype is that of the model which is evaluated."""
    bundle: Bundle | None = None
    candidate: Candidate | None = None
    """What runs the bundle."""

    @classmethod
    def of_checkpoint(cls, model: str, funnel: FunnelSpec | str | None, dtype: Dtype) -> Self:
        """A checkpoint in PyTorch.

        Args:
            model: folder of the checkpoint, or the id of a model on the Hub.
            funnel: a `FunnelSpec`, `"P:R:S"`, `None` or `"none"` for the dense model, or `"auto"` for the one in the
                checkpoint's config, if there is one.
            dtype: dtype in which PyTorch computes.

        Raises:
            CheckpointError: if it cannot be opened, or is not of a task that can be evaluated.
            SpecError: if the funnel does not fit the model or its task.
        """
        found = find_checkpoint(model)
        checkpoint = Checkpoint.open(found.folder)
        chosen = checkpoint.funnel if funnel == AUTO else None if funnel in (None, "none") else funnel
        if isinstance(chosen, str):
            chosen = FunnelSpec.parse(chosen)
        spec = ExportSpec(task=check_predicts(checkpoint.task), dtype=dtype, funnel=chosen)
        if chosen is not None:
            chosen.validate(checkpoint.architecture.num_hidden_layers)
            chosen.validate_maps(checkpoint.funnel)
        return cls(found.name, checkpoint, spec)

    @classmethod
    def of_bundle(cls, bundle: Bundle, target: str | None, engine: str | None) -> Self:
        """A bundle in a target, by default the first that runs it here, or as one of its engines.

        Raises:
            SpecError: if the bundle has no logits of all tokens, or no such engine.
            BundleError: if the engine is damaged or does not fit this machine.
            TargetUnavailableError: if the target does not run the bundle here.
        """
        check_predicts(bundle.spec.task)
        if bundle.spec.logits is Logits.LAST:
            raise SpecError(
                "the bundle has logits of each row's last token only",
                got=f"{bundle.path}, exported with --logits last",
                wanted="logits of all tokens",
                hint="export it with --logits all",
            )
        targets = [target] if target and engine is None else None
        found = next(candidates(bundle, targets, None if engine is None else [engine]), None)
        if found is None:
            raise TargetUnavailableError(
                f"no target on this machine runs a {bundle.spec.dtype} graph or one of the bundle's engines",
                got=f"engines: {', '.join(engine_names(bundle)) or 'none'}",
                hint="funnel-export doctor; or export with --dtype float32",
            )
        if target and found.target.name != target:
            raise SpecError(
                "the engine is of another target",
                got=f"{engine} of {found.target.name}",
                wanted=f"an engine of {target}",
            )
        return cls(str(bundle.path), Checkpoint.open(bundle.path), bundle.spec, bundle, found)

    @property
    def runtime(self) -> str:
        """`eager` for PyTorch, or the name of the target or engine."""
        return EAGER if self.candidate is None else self.candidate.name

    def most(self, axis: str) -> int | None:
        """The largest size of an axis that the engines' optimization profiles take; None if they take any."""
        profiles = [] if self.candidate is None else self.candidate.profiles
        return max((profile.axes[axis].max for profile in profiles if axis in profile.axes), default=None)

    @property
    def versions(self) -> dict[str, str]:
        """The version of the target, by its name."""
        if self.candidate is None:
            return {}
        return {self.candidate.target.name: str(self.candidate.target.availability().version)}

    def load(self, *, dense: bool, dtype: Dtype, device: str, progress: Progress) -> "tuple[Scorer, Scorer | None]":
        """Load the model, and with `dense` also the model of the same weights without a funnel, in PyTorch.

        Args:
            dense: whether to load the dense model.
            dtype: dtype of models in PyTorch.
            device: `cpu` or `cuda`, the device of models in PyTorch.
            progress: called with the name of each step.

        Raises:
            CheckpointError: if PyTorch cannot load the model.
            TargetRefusedError: if the target refuses the graph.
        """
        import torch

        from funnel_export.funnel import apply_funnel
        from funnel_export.quality.scorers import InPyTorch, with_same_weights
        from funnel_export.verify.reference import load_checkpoint

        place = torch.device(device)
        model: Any = None
        if dense or self.bundle is None:
            progress("loading the model in PyTorch")
            model = load_checkpoint(self.checkpoint, self.spec, getattr(torch, dtype)).to(place)
        other = InPyTorch(model, place) if dense else None
        if self.bundle is None:
            if self.spec.funnel is not None:
                model = apply_funnel(with_same_weights(model) if dense else model, self.spec.funnel)
            return InPyTorch(model, place), other
        progress(f"loading the graphs in {self.runtime}")
        return self._load_graphs(self.bundle), other

    def _load_graphs(self, bundle: Bundle) -> "Scorer":
        from funnel_export.quality.scorers import InOnePass, InSteps

        assert self.candidate is not None
        sessions = {role: self.candidate.load(graph) for role, graph in bundle.graphs.items()}
        if bundle.spec.task.has_past:
            return InSteps(bundle, sessions)
        return InOnePass(bundle, sessions[bundle.model.role])


def open_source(
    model: Bundle | str | os.PathLike[str],
    *,
    funnel: FunnelSpec | str | None,
    dtype: Dtype,
    target: str | None,
    engine: str | None,
) -> Source:
    """Open a checkpoint or a bundle; see `Source.of_checkpoint` and `Source.of_bundle`.

    Raises:
        SpecError: for options that the model does not have.
    """
    name = model.path if isinstance(model, Bundle) else os.fspath(model)
    if isinstance(model, Bundle) or (is_here(name) and is_bundle(Path(name))):
        if funnel != AUTO:
            raise SpecError(
                "a bundle's funnel is fixed",
                got=f"funnel {funnel} for {name}",
                wanted="no funnel with a bundle",
                hint="evaluate its checkpoint with --funnel, or export another bundle",
            )
        return Source.of_bundle(model if isinstance(model, Bundle) else load_bundle(name), target, engine)
    if target or engine:
        raise SpecError(
            "a checkpoint runs in PyTorch only",
            got=f"{name} with {f'engine {engine}' if engine else f'target {target}'}",
            wanted="a bundle",
            hint="funnel-export export",
        )
    return Source.of_checkpoint(str(name), funnel, dtype)


def open_other(name: str, source: Source, dtype: Dtype) -> Source:
    """Open the dense model of another checkpoint, to compare a model with.

    Raises:
        SpecError: if it has another vocabulary, other labels or another task.
    """
    other = Source.of_checkpoint(name, None, dtype)
    for what in ("vocab_size", "labels") if not source.spec.task.generates else ("vocab_size",):
        own, found = (_fact(each.checkpoint, what) for each in (source, other))
        if own != found:
            raise SpecError(f"the models differ in {what}", got=f"{found} in {name}", wanted=own)
    if other.spec.task is not source.spec.task.single_pass:
        raise SpecError("the models have different tasks", got=other.spec.task, wanted=source.spec.task.single_pass)
    return other


def _fact(checkpoint: Checkpoint, name: str) -> Any:
    if name == "labels":
        return Labels.of(checkpoint.architecture).names
    return getattr(checkpoint.architecture, name)


def check_predicts(task: Task) -> Task:
    """The task, if its models predict tokens or labels; raises `CheckpointError` for others."""
    if task is Task.FEATURE_EXTRACTION:
        raise CheckpointError(
            "the model predicts neither tokens nor labels",
            got=f"task {task}",
            wanted=f"a model for {Task.TEXT_GENERATION}, {Task.TEXT_CLASSIFICATION} or {Task.TOKEN_CLASSIFICATION}",
        )
    return task
