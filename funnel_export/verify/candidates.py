"""What is compared with eager PyTorch: targets on a bundle's graph, and its engines."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from funnel_export.bundle.engine import Engine, engine_names, load_engine, read_engine_manifest
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.manifest import ENGINES
from funnel_export.errors import BundleError, FunnelExportError, FunnelExportWarning, SpecError, TargetUnavailableError
from funnel_export.spec.profile import SINGLE_PASS, Profile, fitting_profiles
from funnel_export.targets.base import Session, Target, availability_of, check_fits, require
from funnel_export.targets.registry import get_target, target_names, validate_engine_name, validate_path


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is compared with eager PyTorch: a target on the bundle's graph, or on one of its engines."""

    target: Target
    engine: Engine | None = None

    @property
    def name(self) -> str:
        """How the report names it."""
        return self.target.name if self.engine is None else self.engine.name

    @property
    def profiles(self) -> Sequence[Profile]:
        """The engine's optimization profiles; none if it takes every shape."""
        return () if self.engine is None else self.engine.manifest.profiles

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU here."""
        return self.target.on_gpu(self.engine)

    def takes(self, shape: tuple[int, int]) -> bool:
        """Whether the engine's optimization profiles have room for a batch [batch, sequence]."""
        return not self.profiles or bool(fitting_profiles(self.profiles, dict(zip(SINGLE_PASS, shape, strict=True))))

    def load(self, bundle: Bundle, outputs: Sequence[str] = ()) -> Session:
        """See `Target.load`."""
        return self.target.load(bundle.model, outputs=outputs, engine=self.engine)


def candidates(bundle: Bundle, targets: Sequence[str] | None) -> Iterator[Candidate]:
    """What is to be checked: what was asked for, or else everything that runs here."""
    validate_path(bundle)
    dtype = bundle.model.dtype
    engines = _engines_by_target(bundle)
    for target in map(get_target, dict.fromkeys(targets or target_names())):
        if targets is not None:
            require(target, dtype)
        elif not availability_of(target).available or target.supports(dtype) is not None:
            continue
        if target.runs_graphs:
            yield Candidate(target)
        elif targets is not None and target.name not in engines:
            raise BundleError(
                f"the bundle has no engine for {target.name}",
                got=f"engines: {', '.join(engine_names(bundle)) or 'none'}",
                hint=f"funnel-export compile {bundle.path} --target {target.name}",
            )
        for name in engines.get(target.name, []):
            engine = _open_engine(bundle, target, name, strict=targets is not None)
            if engine is not None:
                yield Candidate(target, engine)


def _engines_by_target(bundle: Bundle) -> dict[str, list[str]]:
    """Names of the engines of the graph that takes whole texts."""
    found: dict[str, list[str]] = {}
    for name in engine_names(bundle):
        try:
            validate_engine_name(name)
        except SpecError as err:
            folder = bundle.path / ENGINES / name
            raise BundleError(err.what, got=folder, wanted="another name", hint="rename its folder") from err
        try:
            manifest = read_engine_manifest(bundle.path / ENGINES / name)
            if manifest.graph == bundle.model.role:
                found.setdefault(manifest.target, []).append(name)
        except BundleError as err:  # of an unknown target: none that was asked for
            _raise_or_warn(err, strict=False)
    return found


def _open_engine(bundle: Bundle, target: Target, name: str, *, strict: bool) -> Engine | None:
    """An engine that is whole and fits; otherwise an error, or a warning and None."""
    try:
        engine = load_engine(bundle, name)
        check_fits(target, engine)
    except FunnelExportError as err:
        _raise_or_warn(err, strict=strict)
        return None
    except Exception as err:  # noqa: BLE001 - whatever a runtime raises costs this engine alone
        what = f"{target.name} failed as it judged the engine {name}"
        _raise_or_warn(TargetUnavailableError(what, got=f"{type(err).__name__}: {err}"), strict=strict)
        return None
    return engine


def _raise_or_warn(err: FunnelExportError, *, strict: bool) -> None:
    if strict:
        raise err
    warnings.warn(f"an engine is left out: {err}", FunnelExportWarning, stacklevel=2)
