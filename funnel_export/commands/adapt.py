"""`adapt`: train a checkpoint for its funnel, and write one that `export` takes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint
from funnel_export.errors import BundleError, TargetUnavailableError
from funnel_export.progress import Progress, no_progress
from funnel_export.quality.packages import load_package
from funnel_export.quality.tables import check_places
from funnel_export.spec.choices import AUTO, Device, Dtype, Task, parse_choice
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import FIT_DTYPE, FIT_LENGTH, HELD_OUT_TOKENS
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.training import TrainingSpec
from funnel_export.system.atomic import check_place, replace_folder, write_text
from funnel_export.system.machine import conditions
from funnel_export.training.adapt_report import AdaptReport
from funnel_export.training.plan import Plan

if TYPE_CHECKING:
    import torch

    from funnel_export.training.session import Outcome
    from funnel_export.training.texts import Texts

REPORT = "adapt.json"
"""File of the report in the new checkpoint."""
STATE, SETTINGS = "training", "settings.json"
"""Folder of the state of a run in its output folder, and the file in it that says what the run does."""
PACKAGES = ("torch", "transformers", "accelerate", "peft", "funnel-export")


def adapt(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: DataSpec | Places,
    funnel: FunnelSpec | str | None = AUTO,
    task: Task | str = AUTO,
    training: TrainingSpec | Mapping[str, Any] | None = None,
    from_scratch: bool = False,
    tokens: int | None = None,
    held_out: int = HELD_OUT_TOKENS,
    length: int = FIT_LENGTH,
    dtype: Dtype | str = FIT_DTYPE,
    device: Device | str = Device.AUTO,
    resume: bool = False,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> AdaptReport:
    """Train a model for its funnel with Hugging Face's `Trainer`.

    One document of 20 is held out, for the losses in the report. The state of the run is saved in `out` while it
    trains; with `resume`, a run that was killed continues. At the end the checkpoint replaces the state, with
    the funnel in its config and a report, `adapt.json`. Processes that `torchrun` or, for GPUs, `accelerate launch`
    starts train together.

    Args:
        checkpoint: folder of a checkpoint, best one of `fit`, or the id of a model on the Hugging Face Hub.
        out: folder of the new checkpoint; missing or empty.
        data: texts, with labels for classifiers; see `evaluate`.
        funnel: a `FunnelSpec`, `"P:R:S"`, `"auto"` for the one in the checkpoint's config, or `"none"` to train the
            dense model, as a control.
        task: what the model is trained for: `auto` for the checkpoint's task, or `text-classification` or
            `token-classification` to give a language model a new head.
        training: the settings, or some of them by name. By default a language model with a funnel is trained towards
            the dense model, others on the targets of the data.
        from_scratch: begin with new weights, as in pretraining.
        tokens: most tokens of the texts of a language model that are used, held-out ones included; None for all.
        held_out: most tokens on which losses are measured.
        length: most tokens of a row.
        dtype: dtype of products, and of weights that are not trained; trained weights are in float32.
        device: device to train on; by default a GPU if there is one.
        resume: go on with the run whose state `out` has; without a state, begin.
        revision: branch, tag or commit of a model on the Hub.
        progress: called with each step.

    Raises:
        SpecError: for invalid settings, or a package that is not installed.
        CheckpointError: for a checkpoint that cannot be used.
        DataError: for data that cannot be used, or too little of it.
        BundleError: if `out` is not empty, cannot be written, or has the state of another run.
        TargetUnavailableError: if there is no such device.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100 - links stay
    found = find_checkpoint(checkpoint, revision)
    plan = Plan.of(
        Checkpoint.open(found.folder),
        funnel=funnel,
        task=task,
        training=training,
        name=found.name,
        dtype=parse_choice("dtype", Dtype, dtype),
        from_scratch=from_scratch,
        length=length,
    )
    documents = DataSpec.of(data)
    check_places(documents)
    _check_state(target, resume=resume)
    check_place(target, _has_state)
    plan.source.companions()  # fail before the work if files cannot be copied
    for name in ("accelerate", "peft"):
        load_package(name, "training", "adapt")
    chosen = _device(parse_choice("device", Device, device))
    if not is_main():
        progress = no_progress

    from funnel_export.training.session import train
    from funnel_export.training.texts import read_texts

    progress("reading texts")
    texts = read_texts(
        plan.source,
        plan.task,
        documents,
        length=length,
        tokens=tokens,
        held_out=held_out,
        seed=plan.training.seed,
    )
    settings = plan.settings | {"held_out": held_out, "processes": _processes(), "rows_sha256": texts.sha256}
    _check_settings(target / STATE, settings)
    outcome = train(plan, texts, target / STATE, chosen, lambda: _begin(target / STATE, settings), progress)
    report = _report(plan, texts, outcome, chosen)
    if is_main():
        progress("writing the checkpoint")
        _write(target, plan, outcome, report)
    _wait()
    return report


def _device(device: Device) -> "torch.device":
    """The device of this process; processes that train together have different devices."""
    import torch
    from accelerate import PartialState

    if device is Device.CUDA and not torch.cuda.is_available():
        raise TargetUnavailableError("PyTorch finds no GPU", got=f"torch {torch.__version__}", hint="--device cpu")
    state = PartialState(cpu=device is Device.CPU)  # its own device may be that of an earlier run in this process
    if device is Device.CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", state.local_process_index)


def is_main() -> bool:
    """Whether this process writes: the first of those that train together."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _processes() -> int:
    """Number of processes that train together."""
    from accelerate import PartialState

    return int(PartialState().num_processes)


def _wait() -> None:
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _has_state(folder: Path) -> bool:
    """Whether a folder holds the state of a run and nothing else."""
    return {entry.name for entry in folder.iterdir()} == {STATE} and (folder / STATE / SETTINGS).is_file()


def _check_state(target: Path, *, resume: bool) -> None:
    """Raise `BundleError` if there is the state of a run, unless it is resumed."""
    if (target / STATE / SETTINGS).is_file() and not resume:
        raise BundleError(
            "the output folder has the state of a run that did not end",
            got=target / STATE,
            wanted="a new or empty folder",
            hint="--resume to go on with it, or remove the folder",
        )


def _check_settings(state: Path, settings: Mapping[str, Any]) -> None:
    """Raise `BundleError` if there is the state of a run with other settings."""
    file = state / SETTINGS
    if not file.is_file():
        return
    try:
        stored = _flat(from_json(file.read_bytes()))
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise BundleError(
            "the state of the run cannot be read", got=err, wanted=file, hint="remove the folder"
        ) from err
    wanted = _flat(settings)
    others = [name for name in wanted if stored.get(name) != wanted[name]]
    if others:
        raise BundleError(
            "the state is of another run",
            got="; ".join(f"{name} {stored.get(name)}" for name in others),
            wanted="; ".join(f"{name} {wanted[name]}" for name in others),
            hint="the same arguments as before, or another folder",
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings by name, including each setting of the training."""
    rest = {name: value for name, value in settings.items() if name != "training"}
    return {**rest, **settings.get("training", {})}


def _begin(state: Path, settings: Mapping[str, Any]) -> None:
    """Write what the run does."""
    if is_main():
        try:
            write_text(state / SETTINGS, json.dumps(settings, indent=2) + "\n")
        except OSError as err:
            raise BundleError("the output folder cannot be written", got=err, wanted=f"to create {state}") from err
    _wait()


def _report(plan: Plan, texts: "Texts", outcome: "Outcome", device: "torch.device") -> AdaptReport:
    import torch

    return AdaptReport(
        checkpoint=plan.name,
        task=plan.task,
        funnel=None if plan.funnel is None else plan.funnel.to_dict(),
        training=plan.settings["training"],
        rows_sha256=texts.sha256,
        tokens=texts.tokens,
        seen=outcome.seen,
        steps=outcome.steps,
        trained_weights=outcome.trained_weights,
        held_out=len(texts.held_out.targets),
        length=plan.length,
        dtype=plan.dtype,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        seconds=outcome.seconds,
        losses=outcome.losses,
        history=outcome.history,
        conditions=conditions(PACKAGES),
    )


def _write(target: Path, plan: Plan, outcome: "Outcome", report: AdaptReport) -> None:
    """Write the checkpoint in place of the state."""
    from funnel_export.verify.reference import without_progress_bars

    with replace_folder(target, _has_state) as folder:
        with without_progress_bars():
            outcome.model.save_pretrained(folder)
        for name, content in plan.source.companions().items():
            (folder / name).write_bytes(content)
        (folder / REPORT).write_text(json.dumps(report.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
