"""Runs Hugging Face's `Trainer` on a student, with a state on disk from which a killed run goes on."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic_core import from_json
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from funnel_export.errors import FunnelExportError
from funnel_export.funnel.patch import set_stride
from funnel_export.progress import Progress
from funnel_export.quality.rows import Row
from funnel_export.spec.funnel import MAPS
from funnel_export.spec.training import TrainingSpec
from funnel_export.training.adapt_report import Point
from funnel_export.training.batches import Collator, RowDataset
from funnel_export.training.student import Student

STATE = "trainer_state.json"
"""The last file of a saved state that `Trainer` writes."""
TRAINING, HELD_OUT = "loss", "held_out"
"""Names of the objective and of the loss on held-out texts in the trainer's log."""
LONGEST = 600.0
"""Seconds after which a state is saved, however few steps were made since the last one; with one process only."""
AVERAGED = 10
"""Steps over which the objective is averaged."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, before the last start too."""

    steps: int
    seen: int
    """Tokens of all batches, of all devices."""
    history: list[Point]


def run(
    student: Student,
    rows: Sequence[Row],
    spec: TrainingSpec,
    *,
    model: Any,
    pad: int,
    device: torch.device,
    folder: Path,
    measure: Callable[[], float],
    progress: Progress,
) -> Done:
    """Train a student, from the last state in `folder` if there is one.

    Args:
        student: what is trained; its weights are changed in place.
        rows: rows of tokens, used in an order that the seed draws.
        spec: the settings.
        model: the model that the student trains, for its stride.
        pad: the padding token.
        device: device to train on.
        folder: where states are saved.
        measure: the loss of the model on held-out texts.
        progress: called after each step.

    Raises:
        FunnelExportError: if the objective is not finite.
    """
    last = last_state(folder)
    if last is not None:
        found = TrainerState.load_from_json(str(last / STATE))
        if found.global_step >= found.max_steps:  # `Trainer` would make one more step
            student.load_state_dict(load_file(last / SAFE_WEIGHTS_NAME))
            return _done(found)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation,
        num_train_epochs=spec.epochs,
        max_steps=spec.steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=spec.warmup,
        seed=spec.seed,
        save_strategy="steps",
        save_steps=spec.save_steps,
        logging_steps=1,  # what was summed up since the last log is not part of a state
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        label_names=[],
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with more, `Trainer` copies the model to all GPUs in each step
    callbacks: list[TrainerCallback] = [_Measure(spec, measure), _Show(progress), _SaveByTime(), _KeepLast()]
    if spec.strides:
        callbacks.insert(0, _DrawStride(spec, model))
    trainer = Trainer(
        model=student,
        args=arguments,
        train_dataset=RowDataset(rows),
        data_collator=Collator(pad),
        callbacks=callbacks,
        optimizers=(_optimizer(student, spec), None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return _done(trainer.state)


def _done(state: TrainerState) -> Done:
    """The run so far, with the measurements after every tenth step, after the last step, and of the held-out texts."""
    log = state.log_history
    losses, held_out = (
        {int(each["step"]): each[name] for each in log if name in each} for name in (TRAINING, HELD_OUT)
    )
    steps = {step for step in losses if step % AVERAGED == 0} | {*held_out, max(losses)}
    history = [Point(step=step, training=_mean(losses, step), held_out=held_out.get(step)) for step in sorted(steps)]
    return Done(state.global_step, state.num_input_tokens_seen, history)


def _mean(losses: Mapping[int, float], step: int) -> float:
    """Mean of the objective over the last steps up to one."""
    last = [losses[each] for each in range(max(1, step - AVERAGED + 1), step + 1)]
    return sum(last) / len(last)


def _optimizer(student: Student, spec: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW with a rate for the maps and one for all other weights."""
    maps, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in student.weights.items():
        (maps if MAPS in name.split(".") else others).append(weight)
    groups = [{"params": maps, "lr": spec.maps_learning_rate}, {"params": others, "lr": spec.rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=spec.weight_decay)


def last_state(folder: Path) -> Path | None:
    """The last complete state in a folder; None if there is none."""
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a state that a killed run did not complete
            found[int(from_json((path / STATE).read_bytes())["global_step"])] = path
    return found[max(found)] if found else None


class _SaveByTime(TrainerCallback):
    """Saves a state if the last one is old: on a CPU, a hundred steps may take hours."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Ask for a save; several processes would not agree on when."""
        if args.world_size == 1 and time.monotonic() - self._last >= LONGEST:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Start again."""
        self._last = time.monotonic()


class _KeepLast(TrainerCallback):
    """Removes all states but the last once it is complete, those of a killed run too."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Remove the others."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if path.name != f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}":
                    shutil.rmtree(path, ignore_errors=True)


class _DrawStride(TrainerCallback):
    """Draws the stride of each step. The draw depends on the seed and the number of the step only."""

    def __init__(self, spec: TrainingSpec, model: Any) -> None:
        self._spec, self._model, self._own = spec, model, int(model.config.funnel["stride"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Set the stride of a step."""
        draw = np.random.default_rng([self._spec.seed, state.global_step])
        set_stride(self._model, int(draw.choice(self._spec.strides)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Give the model its own stride again."""
        set_stride(self._model, self._own)


class _Measure(TrainerCallback):
    """Writes losses on held-out texts to the trainer's log, which is saved with the state."""

    def __init__(self, spec: TrainingSpec, measure: Callable[[], float]) -> None:
        self._every, self._measure = spec.measure_steps, measure

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Measure after some steps."""
        if self._every and state.global_step % self._every == 0:
            state.log_history.append({"step": state.global_step, HELD_OUT: self._measure()})


class _Show(TrainerCallback):
    """Shows the steps, and ends a run whose objective is not finite."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Show a step."""
        step, loss = state.global_step, state.log_history[-1].get(TRAINING)
        if loss is None:  # the summary at the end
            return
        if not math.isfinite(loss):
            raise FunnelExportError(
                "the objective is not finite",
                got=f"{loss} in step {step}",
                wanted="a finite number",
                hint="a smaller --learning-rate",
            )
        self._progress(f"step {step} of {state.max_steps}, loss {loss:.4f}", step / state.max_steps)
