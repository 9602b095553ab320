"""Loads the graphs of a bundle that generates text, or engines of them, in one target."""

from collections.abc import Mapping, Sequence

from funnel_export.bundle.engine import Engine, engine_names, engines_named, load_engine
from funnel_export.bundle.load import Bundle
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Task
from funnel_export.targets.base import Target, availability_of, check_fits
from funnel_export.targets.registry import get_target, target_names


def load_stepper(bundle: Bundle, target: str | None = None, engines: Sequence[str] = ()) -> Stepper:
    """Load every graph of a bundle.

    Args:
        bundle: a bundle of the task text-generation-with-past.
        target: name of the target; by default that of the engines, or the first one that runs the graphs here.
        engines: names of engines of the bundle, or the name that those of its graphs share, such as `openvino-cpu`;
            graphs without an engine are loaded as they are. A target that runs engines
            only takes those of the bundle by default.

    Raises:
        SpecError: if the bundle is of another task, or the engines do not fit together.
        BundleError: if an engine is damaged or does not fit this machine.
        TargetUnavailableError: if the target does not run the bundle here.
    """
    return load_graphs(bundle, *choose_target(bundle, target, engines))


def choose_target(
    bundle: Bundle, target: str | None = None, engines: Sequence[str] = ()
) -> tuple[Target, Mapping[str, Engine]]:
    """The target that `load_stepper` loads the graphs in, and the verified engines by role of their graph.

    Raises:
        SpecError, BundleError, TargetUnavailableError: see `load_stepper`.
    """
    check_has_past(bundle)
    opened = [load_engine(bundle, each) for name in engines for each in engines_named(bundle, name) or [name]]
    chosen = get_target(_target_of(bundle, target, opened))
    by_role = _by_role(opened)
    if not chosen.runs_graphs and not opened:
        found = [load_engine(bundle, name) for name in engine_names(bundle)]
        by_role = _by_role([engine for engine in found if engine.manifest.target == chosen.name])
    missing = [role for role in bundle.graphs if role not in by_role]
    if missing and not chosen.runs_graphs:
        raise BundleError(
            f"the bundle has no engine of {chosen.name} for some of its graphs",
            got=f"no engine for {', '.join(missing)}",
            wanted="an engine for every graph",
            hint=f"funnel-export compile {bundle.path} --target {chosen.name}",
        )
    for engine in by_role.values():
        check_fits(chosen, engine)
    return chosen, by_role


def load_graphs(bundle: Bundle, target: Target, engines: Mapping[str, Engine]) -> Stepper:
    """Load every graph of a bundle in a target, or the engine of it; see `choose_target`."""
    sessions = {role: target.load(graph, engine=engines.get(role)) for role, graph in bundle.graphs.items()}
    return Stepper(bundle, sessions)


def check_has_past(bundle: Bundle) -> None:
    """Raise `SpecError` unless a bundle's graphs have a cache."""
    if not bundle.spec.task.has_past:
        raise SpecError(
            "the bundle has no graphs with a cache",
            got=f"task {bundle.spec.task} in {bundle.path}",
            wanted=str(Task.TEXT_GENERATION_WITH_PAST),
            hint=f"funnel-export export --task {Task.TEXT_GENERATION_WITH_PAST}",
        )


def _target_of(bundle: Bundle, target: str | None, engines: Sequence[Engine]) -> str:
    if target is not None:
        return target
    if engines:
        return engines[0].manifest.target
    for name in target_names():
        candidate = get_target(name)
        if candidate.runs_graphs and availability_of(candidate).available and not candidate.supports(bundle.spec):
            return name
    raise TargetUnavailableError(
        f"no target on this machine runs {bundle.spec.dtype} graphs", hint="funnel-export doctor"
    )


def _by_role(engines: Sequence[Engine]) -> dict[str, Engine]:
    by_role: dict[str, Engine] = {}
    for engine in engines:
        other = by_role.setdefault(engine.manifest.graph, engine)
        if other is not engine:
            raise SpecError(
                f"there are two engines of the graph {engine.manifest.graph}",
                got=f"{other.name}, {engine.name}",
                wanted="one engine for a graph",
                hint="--engine for the one that is to be used",
            )
    return by_role
