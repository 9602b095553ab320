"""Options of a packaged Triton model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Backend, Dtype, Kind, Task
from funnel_export.spec.profile import BATCH, Profile

BATCH_OF_A_GRAPH = 8
"""Default of `max_batch_size` for models without an optimization profile."""
LARGEST = 1 << 20
"""Upper limit of every number below; Triton's own limit is 2^31 - 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How Triton runs a model."""

    backend: Backend | None = None
    """`onnxruntime` runs the bundle's graph, `tensorrt` an engine that was compiled from it, `python` the graphs or
    engines of a bundle that generates text; None is `python` for such a bundle and `onnxruntime` for others."""
    engine: str | None = None
    """Name of the engine; None takes the bundle's only one for `tensorrt`, and the graphs for `python`."""
    target: str | None = None
    """For `python`, the target that runs the graphs; None is the first that runs them on the server's machine."""
    max_batch_size: int | None = None
    """Largest batch; 0 disables Triton's batching, None is the engine's largest batch, or 8 without an engine. For
    `python`, most texts that are generated together."""
    max_bytes: int | None = None
    """For `python`, most bytes of the caches; see `Batch`."""
    dynamic_batching: bool = False
    """Whether Triton combines waiting requests into one batch; the next two fields imply it."""
    preferred_batch_size: tuple[int, ...] = ()
    """Batch sizes that Triton runs at once, without waiting for more requests."""
    max_queue_delay_us: int | None = None
    """Microseconds that a request may wait for others; None is Triton's default, no wait."""
    instances: int = 1
    """Copies of the model; on GPUs, copies per GPU. For `python`, each is a process with its own batch."""
    kind: Kind = Kind.AUTO
    """Where the instances run; `auto` is a GPU if the model needs one, otherwise Triton chooses. With `python`, the
    target chooses."""
    gpus: tuple[int, ...] = ()
    """Indices of the GPUs to use; empty for all."""

    def __post_init__(self) -> None:
        """Raise `SpecError` for options that Triton would refuse or misinterpret."""
        _bounded("max_batch_size", self.max_batch_size, 0)
        _bounded("instances", self.instances, 1)
        if self.max_bytes is not None and self.max_bytes < 1:
            raise SpecError("invalid max_bytes", got=self.max_bytes, wanted=">= 1")
        _bounded("max_queue_delay_us", self.max_queue_delay_us, 0)
        for size in self.preferred_batch_size:
            _bounded("preferred_batch_size", size, 1)
        for gpu in self.gpus:
            _bounded("gpu", gpu, 0)
        if len(set(self.gpus)) < len(self.gpus):
            raise SpecError("a GPU is given twice", got=list(self.gpus), wanted="each index once")
        if self.backend is Backend.ONNXRUNTIME and self.engine is not None:
            raise SpecError("the onnxruntime backend takes no engine", got=self.engine, hint="--backend tensorrt")
        self._validate_place()
        self._validate_batches()
        self._validate_generation()

    def _validate_generation(self) -> None:
        """Refuse options of other back ends for `python`, and its own options for the others."""
        if self.backend is Backend.PYTHON:
            if self.batches:
                raise SpecError(
                    "the python backend batches texts itself",
                    got="options of Triton's dynamic batching",
                    wanted="only --max-batch-size, the most texts at the same time",
                )
            if self.kind is not Kind.AUTO or self.gpus:
                raise SpecError(
                    "the python backend runs where its target does",
                    got=f"--kind {self.kind}" if not self.gpus else f"GPUs {list(self.gpus)}",
                    wanted="--kind auto and no --gpu",
                )
            _bounded("max_batch_size", self.max_batch_size, 1)
        elif self.backend is not None and (self.target, self.max_bytes) != (None, None):
            raise SpecError(
                "only the python backend takes a target and max_bytes",
                got=f"target {self.target}, max_bytes {self.max_bytes} for {self.backend}",
                wanted="a bundle that generates text with a cache",
            )

    def _validate_place(self) -> None:
        if self.kind is Kind.CPU and self.gpus:
            raise SpecError("--kind cpu does not use GPUs", got=f"GPUs {list(self.gpus)}", hint="--kind gpu")
        if self.kind is Kind.CPU and self.backend is Backend.TENSORRT:
            raise SpecError("TensorRT runs on GPUs only", got="--kind cpu", hint="--kind gpu")

    def _validate_batches(self) -> None:
        if self.max_batch_size is None or not self.batches:
            return
        if self.max_batch_size < 2:
            raise SpecError(
                "dynamic batching needs room for at least two rows",
                got=f"max_batch_size {self.max_batch_size}",
                wanted="max_batch_size >= 2",
                hint="use a larger --max-batch-size, or no dynamic batching",
            )
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise SpecError(
                "preferred_batch_size exceeds max_batch_size",
                got=f"preferred_batch_size {list(self.preferred_batch_size)}, max_batch_size {self.max_batch_size}",
                wanted="preferred_batch_size <= max_batch_size",
            )

    @property
    def batches(self) -> bool:
        """Whether Triton batches requests dynamically."""
        return self.dynamic_batching or bool(self.preferred_batch_size) or self.max_queue_delay_us is not None

    def for_task(self, task: Task) -> Self:
        """A copy with the back end of a bundle's task.

        Raises:
            SpecError: if the back end does not run bundles of the task, or the other options do not fit it.
        """
        backend = self.backend or (Backend.PYTHON if task.has_past else Backend.ONNXRUNTIME)
        if (backend is Backend.PYTHON) != task.has_past:
            raise SpecError(
                f"the {backend} backend does not run bundles of the task {task}",
                got=f"--backend {backend}",
                wanted=f"--backend {Backend.PYTHON}"
                if task.has_past
                else f"--backend {Backend.ONNXRUNTIME} or {Backend.TENSORRT}",
                hint=None if task.has_past else f"export with --task {Task.TEXT_GENERATION_WITH_PAST}",
            )
        return replace(self, backend=backend)

    def settled(self, dtype: Dtype, profiles: Sequence[Profile]) -> Self:
        """A copy with the defaults filled in for a model of this dtype and the optimization profiles of its engine.

        Raises:
            SpecError: if the options do not fit the model.
        """
        only_gpu = self.backend is Backend.TENSORRT or dtype is Dtype.BFLOAT16
        if only_gpu and self.kind is Kind.CPU:
            raise SpecError(
                "ONNX Runtime has no bfloat16 kernels for the CPU",
                got=f"--kind cpu for a {dtype} graph",
                wanted="--kind gpu",
                hint="export with --dtype float32 to run on the CPU",
            )
        largest = max(profiles, key=lambda profile: profile.axes[BATCH].max, default=None)
        limit = BATCH_OF_A_GRAPH if largest is None else largest.axes[BATCH].max
        size = limit if self.max_batch_size is None else self.max_batch_size
        if largest is not None and size > limit:
            raise SpecError(
                "max_batch_size exceeds the engine's optimization profiles",
                got=f"max_batch_size {size}",
                wanted=f"at most {limit}, the limit of profile {largest}",
                hint="use a smaller --max-batch-size, or compile with a larger profile",
            )
        kind = Kind.GPU if only_gpu else self.kind
        return replace(self, max_batch_size=size, kind=kind)  # this validates again


def _bounded(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= LARGEST:
        raise SpecError(f"invalid {name}", got=value, wanted=f"{least} to {LARGEST}")
