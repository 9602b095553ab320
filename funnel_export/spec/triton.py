"""How Triton is to run a model that was packaged for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Backend, Dtype, Kind
from funnel_export.spec.profile import BATCH, Profile

BATCH_OF_A_GRAPH = 8
"""Default of `max_batch_size` where no optimization profile says more."""
LARGEST = 1 << 20
"""Of any count below; Triton's own fields end at 2^31 - 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How Triton is to run a model."""

    backend: Backend = Backend.ONNXRUNTIME
    """What runs it: `onnxruntime` the bundle's graph, `tensorrt` an engine that was compiled from it."""
    engine: str | None = None
    """Name of the engine to take; None is the bundle's only one for TensorRT."""
    max_batch_size: int | None = None
    """Rows that Triton may batch together; 0 leaves batches to the client, None is the engine's largest or 8."""
    dynamic_batching: bool = False
    """Whether Triton puts requests that wait together into one batch; the next two fields imply it."""
    preferred_batch_size: tuple[int, ...] = ()
    """Sizes of batches that need not wait for more."""
    max_queue_delay_us: int | None = None
    """Microseconds that a request may wait for others; None is Triton's own default, not to wait."""
    instances: int = 1
    """Copies of the model, on every GPU if it runs there."""
    kind: Kind = Kind.AUTO
    """Where they run; `auto` is a GPU where only that can run the model, and Triton's own choice elsewhere."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs to use; none named are all."""

    def __post_init__(self) -> None:
        """Refuse with `SpecError` what Triton would refuse or misunderstand."""
        _bounded("max_batch_size", self.max_batch_size, 0)
        _bounded("instances", self.instances, 1)
        _bounded("max_queue_delay_us", self.max_queue_delay_us, 0)
        for size in self.preferred_batch_size:
            _bounded("preferred_batch_size", size, 1)
        for gpu in self.gpus:
            _bounded("gpu", gpu, 0)
        if len(set(self.gpus)) < len(self.gpus):
            raise SpecError("a GPU is named twice", got=list(self.gpus), wanted="each number once")
        if self.backend is Backend.ONNXRUNTIME and self.engine is not None:
            raise SpecError("an engine is for another back end", got=self.engine, hint="--backend tensorrt")
        self._validate_place()
        self._validate_batches()

    def _validate_place(self) -> None:
        if self.kind is Kind.CPU and self.gpus:
            raise SpecError("instances on the CPU use no GPU", got=f"GPUs {list(self.gpus)}", hint="--kind gpu")
        if self.kind is Kind.CPU and self.backend is Backend.TENSORRT:
            raise SpecError("TensorRT runs on GPUs only", got="--kind cpu", hint="--kind gpu")

    def _validate_batches(self) -> None:
        if self.max_batch_size is None or not self.batches:
            return
        if self.max_batch_size < 2:
            raise SpecError(
                "dynamic batching puts at least two rows together",
                got=f"max_batch_size {self.max_batch_size}",
                wanted="max_batch_size > 1",
                hint="a larger --max-batch-size, or no dynamic batching",
            )
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise SpecError(
                "a preferred batch is larger than any batch may be",
                got=f"preferred_batch_size {list(self.preferred_batch_size)}, max_batch_size {self.max_batch_size}",
                wanted="preferred_batch_size <= max_batch_size",
            )

    @property
    def batches(self) -> bool:
        """Whether Triton makes batches of requests."""
        return self.dynamic_batching or bool(self.preferred_batch_size) or self.max_queue_delay_us is not None

    def settled(self, dtype: Dtype, profiles: Sequence[Profile]) -> Self:
        """These options with nothing left open, for a model of a dtype and the optimization profiles of its engine.

        Raises:
            SpecError: if they do not fit the model.
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
                "no optimization profile of the engine takes batches as large",
                got=f"max_batch_size {size}",
                wanted=f"at most {limit}, of the profile {largest}",
                hint="a smaller --max-batch-size, or compile with a larger profile",
            )
        kind = Kind.GPU if only_gpu else self.kind
        return replace(self, max_batch_size=size, kind=kind)  # which checks them again


def _bounded(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= LARGEST:
        raise SpecError(f"invalid {name}", got=value, wanted=f"{least} to {LARGEST}")
