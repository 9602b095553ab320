"""What a build is asked for and what it answers: JSON between this process and the one that builds."""

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
    """Names of inner values to give out besides the graph's outputs."""
    funnel: Funnel | None
    num_layers: int
    """Layers of the whole model, which tell with the funnel where a node stands."""
    profiles: list[Profile]
    options: TensorRtOptions
    timing_caches: list[Path] = []
    """Timings of earlier builds, to begin with."""
    new_timing_cache: Path | None = None
    """File to write with the timings of this build."""


class Step(_Message):
    """The build goes on."""

    step: str
    done: float | None = None


class Refusal(_Message):
    """The build has ended without a plan: a `FunnelExportError`, in parts."""

    kind: str
    """Name of its class."""
    what: str
    got: str | None = None
    wanted: str | None = None
    hint: str | None = None


class Built(_Message):
    """The build has ended, and the plan is there."""

    facts: dict[str, Any]


class Answer(_Message):
    """A line of what the building process writes."""

    message: Step | Refusal | Built
