"""What a training run does: the checkpoint, the funnel and the settings, checked before any work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.spec.choices import AUTO, Dtype, Recovery, Task, parse_choice
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.training import Objective, Part, TrainingSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A training run. It is valid once it is created."""

    source: Checkpoint
    name: str
    """The checkpoint, as the user named it."""
    funnel: FunnelSpec | None
    """None to train the dense model."""
    task: Task
    training: TrainingSpec
    dtype: Dtype
    from_scratch: bool
    length: int
    """Most tokens of a row."""

    @classmethod
    def of(
        cls,
        source: Checkpoint,
        *,
        funnel: FunnelSpec | str | None,
        task: str,
        training: TrainingSpec | Mapping[str, Any] | None,
        **rest: Any,
    ) -> Self:
        """Take from the checkpoint what is `auto`, and the default settings for the task without others.

        Raises:
            SpecError: for settings that do not fit the checkpoint or each other.
            CheckpointError: if Hugging Face has no model for the task.
        """
        own = source.task
        chosen = own if task == AUTO else parse_choice("task", Task, task).single_pass
        found = source.funnel if funnel == AUTO else None if funnel in (None, "none") else funnel
        if isinstance(found, str):
            found = FunnelSpec.parse(found)
        towards_dense = found is not None and chosen.generates and not rest["from_scratch"]
        if not isinstance(training, TrainingSpec):
            defaults = {
                "objective": Objective.KL if towards_dense else Objective.TARGETS,
                "part": Part.ALL if rest["from_scratch"] else Part.LORA,
            }
            training = TrainingSpec(**{**defaults, **(training or {})})
        return cls(source=source, funnel=found, task=chosen, training=training, **rest)

    def __post_init__(self) -> None:
        self.training.validate_funnel(self.funnel)
        if self.funnel is not None:
            self.funnel.validate(self.source.architecture.num_hidden_layers)
            self.funnel.validate_task(self.task)
            if self.keeps_maps:
                self.funnel.validate_maps(self.source.funnel)
        self._validate_task()
        if self.dtype is Dtype.FLOAT16:
            raise SpecError(
                "training in float16 is not supported: hidden states of these models overflow in it",
                got=self.dtype,
                wanted=f"{Dtype.BFLOAT16} or {Dtype.FLOAT32}",
            )
        no_dense = "new weights" if self.from_scratch else "a new head" if self.has_new_head else ""
        if no_dense and self.training.objective.needs_dense:
            raise SpecError(
                "there is no dense model to train towards",
                got=f"objective {self.training.objective} with {no_dense}",
                wanted=f"objective {Objective.TARGETS}",
            )
        if self.from_scratch and self.training.part is not Part.ALL:
            raise SpecError(
                "a part of the new weights would stay untrained",
                got=f"part {self.training.part}",
                wanted=f"part {Part.ALL}",
            )

        if self.training.vocabulary is not None and not self.task.generates:
            raise SpecError("vocabulary is for language models", got=f"task {self.task}", wanted="no vocabulary")
        if self.training.part is Part.MAPS and self.training.learning_rate is not None and self.task.generates:
            raise SpecError(
                "learning_rate does not apply to the maps",
                got=f"learning_rate {self.training.learning_rate} with part {Part.MAPS}",
                wanted="maps_learning_rate",
                hint="--maps-learning-rate",
            )

    def _validate_task(self) -> None:
        """Raise an error unless the checkpoint's model can be trained for the task."""
        family, own = self.source.family, self.source.task
        if self.task is Task.FEATURE_EXTRACTION:
            raise SpecError(
                "a model without a head has nothing to train",
                got=f"task {self.task}",
                wanted=f"{Task.TEXT_CLASSIFICATION} or {Task.TOKEN_CLASSIFICATION}",
                hint=f"--task {Task.TEXT_CLASSIFICATION}",
            )
        if self.has_new_head and (self.task.generates or not (own.generates or own is Task.FEATURE_EXTRACTION)):
            raise SpecError(
                "the checkpoint has the head of another task",
                got=f"task {self.task} for a checkpoint of {own}",
                wanted=f"task {own}" if self.task.generates else f"a language model, or task {own}",
            )
        if self.task not in family.class_names:
            raise CheckpointError(
                f"Hugging Face has no model of {family.title} for the task",
                got=self.task,
                wanted=", ".join(family.class_names),
            )

    @property
    def has_new_head(self) -> bool:
        """Whether the model gets a head that the checkpoint does not have."""
        return self.task is not self.source.task

    @property
    def keeps_maps(self) -> bool:
        """Whether the maps of the checkpoint are trained further; otherwise those of recovery `linear` are new."""
        stored = self.source.funnel
        return (
            not self.from_scratch
            and self.funnel is not None
            and stored is not None
            and self.funnel.recovery is stored.recovery is Recovery.LINEAR
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a run must have in common with the one that it resumes, as JSON values."""
        return {
            "checkpoint": self.name,
            "funnel": None if self.funnel is None else self.funnel.to_dict(),
            "task": str(self.task),
            "training": {**asdict(self.training), "strides": list(self.training.strides)},
            "dtype": str(self.dtype),
            "from_scratch": self.from_scratch,
            "length": self.length,
        }
