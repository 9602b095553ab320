"""Candidates for a comparison with eager PyTorch: targets on a bundle's graph, and its engines."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from funnel_export.bundle.engine import Engine, engine_names, engines_named, load_engine, read_engine_manifest
from funnel_export.bundle.load import Bundle, Graph
from funnel_export.bundle.manifest import ENGINES, MODEL
from funnel_export.errors import BundleError, FunnelExportError, FunnelExportWarning, SpecError, TargetUnavailableError
from funnel_export.spec.profile import BATCH, SEQUENCE, Profile, fitting_profiles
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import Session, Target, availability_of, check_fits, require
from funnel_export.targets.registry import get_target, target_names, validate_engine_name, validate_path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target that runs the bundle's graphs, or engines of them."""

    target: Target
    engines: Mapping[str, Engine] = field(default_factory=dict)
    """Engines by role of their graph; graphs without one run as they are. Empty for the target on its own."""
    timeout: float = SILENCE
    """Seconds without progress after which the build of an engine with intermediate values is stopped."""

    @property
    def name(self) -> str:
        """Its name in reports: the engines', or else the target's."""
        engine = next(iter(self.engines.values()), None)
        return self.target.name if engine is None else engine.set_name

    @property
    def profiles(self) -> Sequence[Profile]:
        """The engines' optimization profiles; empty if they take every shape."""
        return [profile for engine in self.engines.values() for profile in engine.manifest.profiles]

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU on this machine."""
        return any(map(self.target.on_gpu, self.engines.values() or [None]))

    @property
    def activation_group(self) -> int | None:
        """Inputs of a product that share a scale if the engines round them to 8 bits; None if they do not."""
        groups = [self.target.activation_group(engine) for engine in self.engines.values()]
        return next((group for group in groups if group is not None), None)

    def takes(self, shape: tuple[int, int]) -> bool:
        """Whether an optimization profile of the engine takes a batch of this shape, (batch, sequence).

        Of the engines of stages, the longest sequence is considered: a text is a chunk and steps after it, which have
        profiles of their own.
        """
        batch, sequence = shape
        if not self.profiles:
            return True
        if any(role != MODEL for role in self.engines):
            taking = [profile.axes for profile in self.profiles if batch in profile.axes[BATCH]]
            return bool(taking) and sequence <= max(axes[SEQUENCE].max for axes in taking)
        return bool(fitting_profiles(self.profiles, {BATCH: batch, SEQUENCE: sequence}))

    def load(self, graph: Graph, outputs: Sequence[str] = ()) -> Session:
        """See `Target.load`."""
        return self.target.load(graph, outputs=outputs, engine=self.engines.get(graph.role), timeout=self.timeout)


def candidates(
    bundle: Bundle, targets: Sequence[str] | None, engines: Sequence[str] | None = None, timeout: float = SILENCE
) -> Iterator[Candidate]:
    """The requested targets and engines, or by default all that run on this machine.

    Args:
        bundle: a verified bundle.
        targets: names of targets: each runs the graph, and its engines unless `engines` is given.
        engines: names of engines: only these, and the graph in `targets`.
        timeout: see `Candidate`.

    Raises:
        SpecError: for an engine that is not in the bundle.
        BundleError: if a requested engine is damaged, does not fit this machine, or shares its name in reports.
        TargetUnavailableError: if a requested target cannot run the bundle on this machine.
    """
    validate_path(bundle)
    strict = targets is not None or engines is not None
    by_target = _engines_by_target(bundle) if engines is None else _named_engines(bundle, engines)
    names = (
        target_names() if targets is None and engines is None else [*(targets or ()), *(by_target if engines else ())]
    )
    named: set[str] = set()
    for target in map(get_target, dict.fromkeys(names)):
        if strict:
            require(target, bundle.spec)
        elif not availability_of(target).available or target.supports(bundle.spec) is not None:
            continue
        if target.runs_graphs and (engines is None or target.name in (targets or ())):
            yield Candidate(target, timeout=timeout)
        elif strict and target.name not in by_target:
            raise BundleError(
                f"the bundle has no engine for {target.name}",
                got=f"engines: {', '.join(engine_names(bundle)) or 'none'}",
                hint=f"funnel-export compile {bundle.path} --target {target.name}",
            )
        opened = [_open_engine(bundle, target, name, strict=strict) for name in by_target.get(target.name, [])]
        groups: dict[str, dict[str, Engine]] = {}
        for engine in filter(None, opened):
            clash = _clash(engine, groups, named)
            if clash is None:
                groups.setdefault(engine.set_name, {})[engine.manifest.graph] = engine
            else:
                _raise_or_warn(clash, strict=strict)
        named |= groups.keys()
        for name, group in groups.items():
            if target.runs_graphs or group.keys() == bundle.graphs.keys():
                yield Candidate(target, group, timeout)
                continue
            missing = BundleError(
                f"the engines {name} are not complete",
                got=f"no engine for {', '.join(role for role in bundle.graphs if role not in group)}",
                hint=f"funnel-export compile {bundle.path} --target {target.name}",
            )
            _raise_or_warn(missing, strict=strict)


def _engines_by_target(bundle: Bundle) -> dict[str, list[str]]:
    """Names of the engines of the bundle's graphs, by target."""
    found: dict[str, list[str]] = {}
    for name in engine_names(bundle):
        _validate_folder(bundle, name)
        try:
            manifest = read_engine_manifest(bundle.path / ENGINES / name)
            if manifest.graph in bundle.graphs:
                found.setdefault(manifest.target, []).append(name)
        except BundleError as err:  # its target is unknown, so it was not requested
            _raise_or_warn(err, strict=False)
    return found


def _named_engines(bundle: Bundle, names: Sequence[str]) -> dict[str, list[str]]:
    """The requested engines, by target."""
    present = engine_names(bundle)
    unknown = [name for name in names if not engines_named(bundle, name)]
    if unknown:
        raise SpecError(
            "the bundle has no such engine",
            got=", ".join(map(repr, unknown)),
            wanted=f"any of {', '.join(present)}" if present else "an engine; the bundle has none",
            hint=f"funnel-export compile {bundle.path}" if not present else None,
        )
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(each for asked in names for each in engines_named(bundle, asked)):
        _validate_folder(bundle, name)
        manifest = read_engine_manifest(bundle.path / ENGINES / name)
        if manifest.graph not in bundle.graphs:
            raise SpecError(
                "the engine was compiled from another bundle's graph",
                got=f"{name}, compiled from the graph {manifest.graph}",
                wanted=f"an engine of {' or '.join(bundle.graphs)}",
            )
        found.setdefault(manifest.target, []).append(name)
    return found


def _validate_folder(bundle: Bundle, name: str) -> None:
    """Raise `BundleError` if the name of an engine's folder is not a valid engine name."""
    try:
        validate_engine_name(name)
    except SpecError as err:
        folder = bundle.path / ENGINES / name
        raise BundleError(err.what, got=folder, wanted="another name", hint="rename its folder") from err


def _clash(engine: Engine, groups: Mapping[str, Mapping[str, Engine]], taken: Collection[str]) -> BundleError | None:
    """The error for an engine whose name in reports is that of something else.

    Results are looked up by that name, so one of the two would pass with the results of the other, or not be compared.

    Args:
        engine: the engine.
        groups: the earlier engines of its target, by name in reports and role.
        taken: names in reports of the engines of other targets.
    """
    name, folder = engine.set_name, engine.path
    other = groups.get(name, {}).get(engine.manifest.graph)
    try:
        validate_engine_name(name)
    except SpecError as err:
        return BundleError(err.what, got=f"{name}, for the engine {folder}", hint="rename its folder")
    if other is None and name not in taken:
        return None
    return BundleError(
        "two engines have the same name in reports",
        got=f"{name}, for {folder} and " + ("an engine of another target" if other is None else str(other.path)),
        wanted="a different name for each, without the role of its graph in front",
        hint="rename one of the folders",
    )


def _open_engine(bundle: Bundle, target: Target, name: str, *, strict: bool) -> Engine | None:
    """Load an engine and check that it fits this machine; if not, raise, or warn and return None unless `strict`."""
    try:
        engine = load_engine(bundle, name)
        check_fits(target, engine)
    except FunnelExportError as err:
        _raise_or_warn(err, strict=strict)
        return None
    except Exception as err:  # noqa: BLE001 - a runtime may raise anything; it must not stop the other engines
        what = f"{target.name} failed to inspect the engine {name}"
        _raise_or_warn(TargetUnavailableError(what, got=f"{type(err).__name__}: {err}"), strict=strict)
        return None
    return engine


def _raise_or_warn(err: FunnelExportError, *, strict: bool) -> None:
    if strict:
        raise err
    warnings.warn(f"an engine is left out: {err}", FunnelExportWarning, stacklevel=2)
