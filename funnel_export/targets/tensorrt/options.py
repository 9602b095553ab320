"""What can be asked of a TensorRT build, under the names that TensorRT has for it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator

from funnel_export.errors import SpecError, TargetUnavailableError
from funnel_export.targets.options import Options
from funnel_export.targets.tensorrt.flavour import Flavour


class TensorRtOptions(Options):
    """Builder settings; precision is not among them, since it is the graph's."""

    tf32: Annotated[bool, Field(description="let float32 products use TF32, at a cost in parity")] = False
    builder_optimization_level: Annotated[
        int | None, Field(ge=0, le=5, description="0 builds fastest, 5 searches longest")
    ] = None
    max_aux_streams: Annotated[int | None, Field(ge=0, le=64, description="CUDA streams beside the main one")] = None
    workspace: Annotated[ByteSize | None, Field(gt=0, description="device memory that tactics may use, as 4GiB")] = None
    weight_streaming: Annotated[bool, Field(description="let weights stay in host memory and be streamed")] = False
    refit: Annotated[
        Literal["none", "identical", "all"],
        Field(description="whether weights can be exchanged: by themselves only (identical), or by any (all)"),
    ] = "none"
    strip_plan: Annotated[bool, Field(description="leave the weights out; they come from the bundle at load")] = False
    version_compatible: Annotated[bool, Field(description="let later 11.x versions load the plan")] = False
    exclude_lean_runtime: Annotated[bool, Field(description="leave the lean runtime out of such a plan")] = False
    hardware_compatibility_level: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        Field(description="GPUs besides the one it is built on"),
    ] = "none"
    compute_capabilities: Annotated[
        str | None,
        Field(pattern=r"^\d+\.\d(,\d+\.\d)*$", description="GPUs that the plan is for, as 8.9,12.0"),
    ] = None
    timing_cache: Annotated[
        Path | None, Field(description="file of timings to begin with, if it is there, and to add to")
    ] = None
    profiling_verbosity: Annotated[
        Literal["none", "layer_names_only", "detailed"], Field(description="what the plan tells about its layers")
    ] = "detailed"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("exclude_lean_runtime goes with version_compatible=true only")
        return self

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities that were asked for, each once."""
        return list(dict.fromkeys(filter(None, (self.compute_capabilities or "").split(","))))


def validate_options(options: TensorRtOptions, flavour: Flavour, no_gpu: str | None) -> None:
    """Refuse options that this flavour, or this machine, cannot honour.

    Args:
        options: what was asked for.
        flavour: who is asked.
        no_gpu: why there is no GPU here, None if there is one.

    Raises:
        SpecError: for options that the flavour has not, all of them at once.
        TargetUnavailableError: for options that need a GPU where none is.
    """
    asked = set(options.recorded())
    refused = [f"{name}: {flavour.refuses[name]}" for name in sorted(asked & set(flavour.refuses))]
    if refused:
        raise SpecError(
            f"{flavour.target} cannot honour {'this option' if len(refused) == 1 else 'these options'}",
            got="\n".join(refused),
            wanted="a build without",
        )
    lacking = [f"{name}: {flavour.needs_gpu_for[name]}" for name in sorted(asked & set(flavour.needs_gpu_for))]
    if lacking and no_gpu is not None:
        raise TargetUnavailableError(
            f"{flavour.target} needs a GPU to build with this",
            got="\n".join([*lacking, no_gpu]),
            hint="build on a machine with a GPU, or leave it out",
        )
