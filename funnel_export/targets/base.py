"""What every target can do: say whether it works here, compile a graph, load it, run it with named tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.engine import BuiltFor, Engine
from funnel_export.bundle.load import Graph
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype
from funnel_export.spec.profile import Profile
from funnel_export.system.room import check_room
from funnel_export.system.worker import SILENCE
from funnel_export.targets.options import Options

OptionsT = TypeVar("OptionsT", bound=Options)
MOST_SECONDS = 30 * 24 * 3600
"""Of a time limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """Whether a target works on this machine."""

    available: bool
    """Whether it runs bundles or engines here."""
    compiles: bool = False
    """Whether it builds engines here."""
    version: str | None = None
    """Version of the runtime, None if it is not installed."""
    detail: str = ""
    """The devices that it finds, or why it does not work."""
    hint: str | None = None
    """What to do about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileRequest:
    """What a target is asked to compile."""

    graph: Graph
    profiles: tuple[Profile, ...] = ()
    options: Options = field(default_factory=Options)
    outputs: tuple[str, ...] = ()
    """Names of inner values to give out besides the graph's outputs."""
    timeout: float = SILENCE
    """Seconds without a step after which a build in a process of its own is ended."""
    earlier: Mapping[str, Path] = field(default_factory=dict)
    """Those files of the engine that is to be replaced that the target reuses, and that proved to be whole."""

    def options_as(self, kind: type[OptionsT]) -> OptionsT:
        """The options, which are of this kind."""
        assert isinstance(self.options, kind)
        return self.options


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What a target has compiled."""

    files: Sequence[str]
    """Names of the files that it wrote, the one to load first."""
    facts: Mapping[str, Any]
    """What the build told."""


class Session(Protocol):
    """A loaded graph."""

    device: str
    """Where it runs, as the runtime names it."""
    precision: str
    """What it computes in, as far as the runtime tells."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on named tensors; 16-bit outputs come back as float16, or as float32 holding bfloat16's values."""
        ...

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """A call that runs on these tensors, again and again, and returns when the device is done.

        Inputs and outputs stay where the runtime has them, as a production runtime would bind them; a later `run` or
        `prepare` ends it.
        """
        ...

    def close(self) -> None:
        """Give memory back, and keep for next time what was learnt; a closed session does not run."""
        ...


class Target(Protocol):
    """A runtime that compiles and loads graphs."""

    options: ClassVar[type[Options]]
    """What can be asked of a build."""
    takes_profiles: ClassVar[bool]
    """Whether its engines are for ranges of shapes; others take any shape."""
    runs_graphs: ClassVar[bool]
    """Whether it runs a bundle's graph without an engine."""
    reuses: ClassVar[tuple[str, ...]]
    """Files of an earlier engine that a build may begin with."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    def availability(self) -> Availability:
        """Whether it works here, without raising."""
        ...

    def supports(self, dtype: Dtype) -> str | None:
        """None if it can run a graph of this dtype here, else the reason why not."""
        ...

    def built_for(self, request: CompileRequest) -> BuiltFor:
        """The machines that an engine compiled here would run on.

        Raises:
            SpecError: for options that the target cannot honour.
            TargetUnavailableError: if it cannot compile this here.
        """
        ...

    def engine_name(self, built_for: BuiltFor) -> str:
        """Name of the folder of an engine, unless another one is asked for."""
        ...

    def compile(self, request: CompileRequest, folder: Path, progress: Progress) -> Compiled:
        """Compile a graph into files of a folder; `built_for` has accepted the request.

        Raises:
            TargetRefusedError: if it refuses the graph.
        """
        ...

    def on_gpu(self, engine: Engine | None) -> bool:
        """Whether it runs a graph, or an engine, on a GPU here."""
        ...

    def misfit(self, engine: Engine) -> str | None:
        """Why an engine does not run here, told without reading it; None if it does.

        Raises:
            TargetUnavailableError: if nothing of this target runs here.
        """
        ...

    def load(self, graph: Graph, *, outputs: Sequence[str] = (), engine: Engine | None = None) -> Session:
        """Load a graph, or an engine of it.

        Args:
            graph: a graph of a verified bundle.
            outputs: names of inner values to give out besides the graph's outputs.
            engine: a verified engine of this graph that runs here, `check_fits` says so.

        Raises:
            TargetUnavailableError: if the target, or this dtype, does not work on this machine.
            TargetRefusedError: if it refuses the graph.
        """
        ...


def as_float(array: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 as float32, which holds its values; everything else as it is."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def require(target: Target, dtype: Dtype) -> None:
    """Raise `TargetUnavailableError` unless the target runs graphs of this dtype here."""
    here = availability_of(target)
    if not here.available:
        raise TargetUnavailableError(f"{target.name} is not available here", got=here.detail, hint=here.hint)
    reason = target.supports(dtype)
    if reason is not None:
        raise TargetUnavailableError(
            f"{target.name} cannot run a {dtype} graph here",
            got=reason,
            hint="another --target, or export with --dtype float32",
        )


def check_fits(target: Target, engine: Engine) -> None:
    """Raise `BundleError` unless an engine is for this target, its installed version and this device."""
    why = target.misfit(engine) if engine.manifest.target == target.name else f"it is for {engine.manifest.target}"
    if why is not None:
        raise BundleError(
            f"the engine {engine.name} does not run in {target.name} here",
            got=why,
            wanted="an engine for this version and this device",
            hint="compile the bundle again, here",
        )


def check_room_for_engine(graph: Graph, folder: Path) -> None:
    """Raise `BundleError` unless an engine that holds the graph's weights finds room in a folder.

    They are counted in the smaller of two dtypes: that in which they are stored, and that in which the graph computes.
    """
    import onnx_ir as ir

    tensors = [value.const_value for value in ir.load(graph.path).graph.initializers.values()]
    itemsize = 4 if graph.dtype is Dtype.FLOAT32 else 2
    needed = sum(min(each.nbytes, each.size * itemsize) for each in tensors if each is not None)
    check_room(folder, int(needed), "the weights in the engine")


def validate_timeout(timeout: float) -> None:
    """Raise `SpecError` for a time limit that no process could keep."""
    if not 0 < timeout <= MOST_SECONDS:
        raise SpecError("invalid time limit", got=f"{timeout} s", wanted=f"more than 0 and at most {MOST_SECONDS:,} s")


def availability_of(target: Target) -> Availability:
    """Whether a target works here; one whose runtime fails while it is asked does not."""
    try:
        return target.availability()
    except Exception as err:  # noqa: BLE001 - whatever a runtime raises costs this target alone
        return Availability(available=False, detail=f"it failed: {type(err).__name__}: {err}")
