"""Build options of TensorRT, under TensorRT's names."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator

from funnel_export.errors import SpecError, TargetUnavailableError
from funnel_export.targets.options import Options
from funnel_export.targets.tensorrt.flavour import Flavour


class TensorRtOptions(Options):
    """Builder settings; there is none for precision, which is the graph's."""

    tf32: Annotated[bool, Field(description="let float32 products use TF32, at a cost in parity")] = False
    builder_optimization_level: Annotated[
        int | None, Field(ge=0, le=5, description="0 builds fastest, 5 searches longest")
    ] = None
    max_aux_streams: Annotated[int | None, Field(ge=0, le=64, description="CUDA streams beside the main one")] = None
    workspace: Annotated[ByteSize | None, Field(gt=0, description="device memory for tactics, for example 4GiB")] = None
    weight_streaming: Annotated[bool, Field(description="let weights stay in host memory and be streamed")] = False
    refit: Annotated[
        Literal["none", "identical", "all"],
        Field(description="replaceable weights: only by the same weights (identical), or by any (all)"),
    ] = "none"
    strip_plan: Annotated[bool, Field(description="leave the weights out; they are read from the bundle at load")] = (
        False
    )
    version_compatible: Annotated[bool, Field(description="let later 11.x versions load the plan")] = False
    exclude_lean_runtime: Annotated[bool, Field(description="leave the lean runtime out of such a plan")] = False
    hardware_compatibility_level: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        Field(description="other GPUs that can run the plan"),
    ] = "none"
    compute_capabilities: Annotated[
        str | None,
        Field(pattern=r"^\d+\.\d(,\d+\.\d)*$", description="GPUs that can run the plan, for example 8.9,12.0"),
    ] = None
    timing_cache: Annotated[
        Path | None, Field(description="timing cache file to read, if it exists, and to update")
    ] = None
    profiling_verbosity: Annotated[
        Literal["none", "layer_names_only", "detailed"], Field(description="details of layers that the plan records")
    ] = "detailed"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("exclude_lean_runtime requires version_compatible=true")
        return self

    @property
    def capabilities(self) -> list[str]:
        """The requested compute capabilities, without duplicates."""
        return list(dict.fromkeys(filter(None, (self.compute_capabilities or "").split(","))))


def validate_options(options: TensorRtOptions, flavour: Flavour, no_gpu: str | None) -> None:
    """Refuse options that this flavour or this machine does not support.

    Args:
        options: the options of a build.
        flavour: TensorRT or TensorRT-RTX.
        no_gpu: why there is no GPU here, None if there is one.

    Raises:
        SpecError: if the flavour does not support options; the message lists all of them.
        TargetUnavailableError: if options need a GPU and there is none.
    """
    asked = set(options.recorded())
    refused = [f"{name}: {flavour.refuses[name]}" for name in sorted(asked & set(flavour.refuses))]
    if refused:
        raise SpecError(
            f"{flavour.target} does not support {'this option' if len(refused) == 1 else 'these options'}",
            got="\n".join(refused),
            hint="leave it out" if len(refused) == 1 else "leave them out",
        )
    lacking = [f"{name}: {flavour.needs_gpu_for[name]}" for name in sorted(asked & set(flavour.needs_gpu_for))]
    if lacking and no_gpu is not None:
        raise TargetUnavailableError(
            f"{flavour.target} needs a GPU for builds with these options",
            got="\n".join([*lacking, no_gpu]),
            hint="build on a machine with a GPU, or leave these options out",
        )
