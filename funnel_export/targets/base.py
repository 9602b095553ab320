"""The interface of all targets: report availability, compile a graph, load it, run it on named tensors."""

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
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.profile import Profile
from funnel_export.system.room import check_room
from funnel_export.system.worker import SILENCE
from funnel_export.targets.options import Options

OptionsT = TypeVar("OptionsT", bound=Options)
MOST_SECONDS = 30 * 24 * 3600
"""Largest time limit, in seconds."""


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
    """What to do if it does not work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileRequest:
    """A graph to compile, with profiles and options."""

    graph: Graph
    profiles: tuple[Profile, ...] = ()
    options: Options = field(default_factory=Options)
    outputs: tuple[str, ...] = ()
    """Names of intermediate values to return in addition to the graph's outputs."""
    timeout: float = SILENCE
    """Seconds without progress after which a build in a separate process is stopped."""
    earlier: Mapping[str, Path] = field(default_factory=dict)
    """Verified files of the engine to be replaced that the target can reuse, by name."""

    def options_as(self, kind: type[OptionsT]) -> OptionsT:
        """The options, typed as the target's own class."""
        assert isinstance(self.options, kind)
        return self.options


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """The result of a build."""

    files: Sequence[str]
    """Names of the files that it wrote, the one to load first."""
    facts: Mapping[str, Any]
    """Facts about the build, for the engine's manifest."""


class Session(Protocol):
    """A loaded graph."""

    device: str
    """Device that it runs on, under the runtime's name."""
    precision: str
    """Dtype that it computes in, as far as the runtime reports it."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on named tensors; bfloat16 outputs are returned as float32, others in their own dtype."""
        ...

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that runs on these tensors at each call, and returns when the device is done.

        Inputs and outputs stay in the runtime's memory, as in production. The function must not be called after a later
        `run` or `prepare`.
        """
        ...

    def close(self) -> None:
        """Free memory, and save the runtime's caches for later sessions; a closed session cannot run."""
        ...


class Target(Protocol):
    """A runtime that compiles and loads graphs."""

    options: ClassVar[type[Options]]
    """Class of its build options."""
    takes_profiles: ClassVar[bool]
    """Whether its engines have optimization profiles; other engines accept any shape."""
    runs_graphs: ClassVar[bool]
    """Whether it runs a bundle's graph without an engine."""
    files: ClassVar[tuple[str, ...]]
    """Names of the files of its engines, the one to load first; a build may leave out the others."""
    reuses: ClassVar[tuple[str, ...]]
    """Names of files of an earlier engine that a new build can reuse."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    def availability(self) -> Availability:
        """Whether it works here, and with which version and devices."""
        ...

    def supports(self, spec: ExportSpec) -> str | None:
        """None if it can run such graphs here, else the reason."""
        ...

    def built_for(self, request: CompileRequest) -> BuiltFor:
        """The machines on which an engine compiled here would run.

        Raises:
            SpecError: for options that the target does not support.
            TargetUnavailableError: if it cannot compile this graph here.
        """
        ...

    def engine_name(self, built_for: BuiltFor) -> str:
        """Default name of an engine's folder."""
        ...

    def compile(self, request: CompileRequest, folder: Path, progress: Progress) -> Compiled:
        """Compile a graph and write the files into a folder; `built_for` must have accepted the request.

        Raises:
            TargetRefusedError: if it refuses the graph.
        """
        ...

    def on_gpu(self, engine: Engine | None) -> bool:
        """Whether it runs a graph, or an engine, on a GPU here."""
        ...

    def activation_group(self, engine: Engine) -> int | None:
        """Inputs that share a scale if an engine rounds those of products with quantized weights to 8 bits, else None.

        That is what its options say. Without them no target does.
        """
        ...

    def misfit(self, engine: Engine) -> str | None:
        """Why an engine does not run here, without loading it; None if it does.

        Raises:
            TargetUnavailableError: if no engine of this target runs here.
        """
        ...

    def load(
        self,
        graph: Graph,
        *,
        outputs: Sequence[str] = (),
        engine: Engine | None = None,
        timeout: float = SILENCE,
    ) -> Session:
        """Load a graph, or an engine of it.

        Args:
            graph: a graph of a verified bundle.
            outputs: names of intermediate values to return in addition to the graph's outputs.
            engine: a verified engine of this graph that has passed `check_fits`.
            timeout: seconds without progress after which a build in a separate process is stopped; only an engine with
                intermediate values is built.

        Raises:
            TargetUnavailableError: if the target does not work here, or not in this dtype.
            TargetRefusedError: if it refuses the graph.
        """
        ...


def as_float(array: NDArray[Any]) -> NDArray[Any]:
    """Convert bfloat16 to float32, which is exact; return other arrays unchanged."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def require(target: Target, spec: ExportSpec) -> None:
    """Raise `TargetUnavailableError` unless the target runs such graphs here."""
    here = availability_of(target)
    if not here.available:
        raise TargetUnavailableError(f"{target.name} is not available here", got=here.detail, hint=here.hint)
    reason = target.supports(spec)
    if reason is not None:
        raise TargetUnavailableError(
            f"{target.name} cannot run a {spec.dtype} graph here",
            got=reason,
            hint="use another --target, or export with --dtype float32, and with --bits 8 for small weights",
        )


def check_fits(target: Target, engine: Engine) -> None:
    """Raise `BundleError` unless an engine is for this target, its installed version and this device.

    Its files and profiles must be such as the target writes.
    """
    check_kind(target, engine)
    why = target.misfit(engine) if engine.manifest.target == target.name else f"it is for {engine.manifest.target}"
    if why is not None:
        raise BundleError(
            f"the engine {engine.name} does not run in {target.name} here",
            got=why,
            wanted="an engine for this version and this device",
            hint="compile the bundle again on this machine",
        )


def check_kind(target: Target, engine: Engine) -> None:
    """Raise `BundleError` for files or profiles that the target, if it is the engine's, does not write.

    `load_engine` judges files by their names: a graph under another name would reach the runtime unseen. An engine is
    compared on the shapes of its profiles only: one that takes every shape must not name a few.
    """
    if engine.manifest.target != target.name:
        return
    names = [record.file for record in engine.manifest.files]
    wanted = [name for name in target.files if name in names or name == target.files[0]]
    if engine.manifest.profiles and not target.takes_profiles:
        raise BundleError(
            f"the engine {engine.name} has optimization profiles, and {target.name} has none",
            got=", ".join(map(str, engine.manifest.profiles)),
            wanted="an engine without profiles, which takes every shape",
            hint="compile the bundle again",
        )
    if names != wanted:
        raise BundleError(
            f"the engine {engine.name} has files that {target.name} does not write",
            got=", ".join(names),
            wanted=" and ".join(target.files),
            hint="compile the bundle again",
        )


def check_room_for_engine(graph: Graph, folder: Path, plain: tuple[str, ...] = ()) -> None:
    """Raise `BundleError` unless a folder's disk has space for an engine that contains the graph's weights.

    The size of each weight is that in its stored dtype or in the graph's dtype, whichever is smaller.

    Args:
        graph: the graph of the engine.
        folder: where the engine is written.
        plain: ends of the names of weights that the engine has in the graph's dtype.
    """
    import onnx_ir as ir

    tensors = [value.const_value for value in ir.load(graph.path).graph.initializers.values()]
    itemsize = 4 if graph.dtype is Dtype.FLOAT32 else 2
    needed = sum(
        each.size * itemsize if str(each.name).endswith(plain) else min(each.nbytes, each.size * itemsize)
        for each in tensors
        if each is not None
    )
    check_room(folder, int(needed), "the weights in the engine")


def validate_timeout(timeout: float) -> None:
    """Raise `SpecError` unless a time limit in seconds is positive and at most `MOST_SECONDS`."""
    if not 0 < timeout <= MOST_SECONDS:
        raise SpecError("invalid time limit", got=f"{timeout} s", wanted=f"more than 0 and at most {MOST_SECONDS:,} s")


def availability_of(target: Target) -> Availability:
    """Whether a target works here; it counts as unavailable if the check itself fails."""
    try:
        return target.availability()
    except Exception as err:  # noqa: BLE001 - an error in one runtime must not affect other targets
        return Availability(available=False, detail=f"it failed: {type(err).__name__}: {err}")
