"""Messages between this process and the build process, as JSON."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.ports import Port
from funnel_export.bundle.record import Funnel
from funnel_export.spec.choices import Dtype
from funnel_export.spec.profile import Profile
from funnel_export.targets.tensorrt.options import TensorRtOptions


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildRequest(_Message):
    """One plan to build."""

    target: str
    graph: Path
    plan: Path
    """File to write."""
    dtype: Dtype
    inputs: list[Port]
    outputs: list[str]
    """Names of intermediate values to return in addition to the graph's outputs."""
    funnel: Funnel | None
    num_layers: int
    """Layers of the whole model; with the funnel, they give a node's place in error messages."""
    profiles: list[Profile]
    options: TensorRtOptions
    timing_caches: list[Path] = []
    """Timing cache files of earlier builds, to read."""
    new_timing_cache: Path | None = None
    """Timing cache file of this build, to write."""


class Step(_Message):
    """Progress of the build."""

    step: str
    done: float | None = None


class Refusal(_Message):
    """The build failed: the parts of a `FunnelExportError`."""

    kind: str
    """Name of its class."""
    what: str
    got: str | None = None
    wanted: str | None = None
    hint: str | None = None


class Built(_Message):
    """The build succeeded."""

    facts: dict[str, Any]


class Answer(_Message):
    """A line that the build process writes."""

    message: Step | Refusal | Built
