"""`check`: does what targets and engines compute equal what eager PyTorch computes?"""

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from funnel_export.bundle import ENGINES, REPORTS, Bundle, load_bundle
from funnel_export.engine import Engine, engine_names, load_engine, read_engine_manifest
from funnel_export.errors import (
    BundleError,
    FunnelExportError,
    FunnelExportWarning,
    SpecError,
    TargetUnavailableError,
)
from funnel_export.progress import Progress, no_progress

if TYPE_CHECKING:
    from funnel_export.targets import Target
    from funnel_export.verify.parity import Candidate
    from funnel_export.verify.parity_report import ParityReport


def check(
    bundle: Bundle | str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    lengths: Sequence[int] = (),
    max_length: int | None = None,
    factor: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> "ParityReport":
    """Compare what targets compute with eager PyTorch; the report goes into the bundle's `reports/parity.json`.

    `report.md`, `report.html` and pictures beside it are made anew.

    A target is compared on the bundle's graph, if it runs graphs, and on every engine that the bundle has for it. One
    that refuses the graph has an error in the report, and the others have their say all the same.

    Args:
        bundle: a bundle or its folder.
        targets: names of targets; by default every one that can run the bundle here, with the engines that fit.
        lengths: sequence lengths to check besides those around the stride and the sliding window.
        max_length: leave out longer sequences; the report names what was left out.
        factor: how many times eager PyTorch's own error in the bundle's dtype a target may show.
        seed: seed of the tokens.
        progress: called with the name of each step.

    Raises:
        BundleError: if the bundle is not whole, or an engine of a target that was asked for is not, or not for here.
        TargetUnavailableError: if a target that was asked for, or every target, does not run the bundle here.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    from funnel_export.report.write import PARITY, keep_report, refuse_link

    refuse_link(opened.path / REPORTS)
    report = compare(
        opened, targets=targets, lengths=lengths, max_length=max_length, factor=factor, seed=seed, progress=progress
    )
    progress("report")
    keep_report(opened, PARITY, report)
    return report


def compare(
    opened: Bundle,
    *,
    targets: Sequence[str] | None = None,
    lengths: Sequence[int] = (),
    max_length: int | None = None,
    factor: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> "ParityReport":
    """What `check` finds, with its arguments; nothing is written."""
    refuse_numbers(lengths, max_length, factor)
    chosen = list(candidates(opened, targets))
    if not chosen:
        raise TargetUnavailableError(
            f"no target here runs a {opened.manifest.dtype} graph, nor one of the bundle's engines",
            got=f"engines: {', '.join(engine_names(opened)) or 'none'}",
            hint="funnel-export doctor; or export with --dtype float32",
        )
    from funnel_export.verify.inputs import plan_cases, with_profiles
    from funnel_export.verify.parity import FACTOR, check_parity, refuse_if_too_large

    profiles = [profile for each in chosen for profile in each.profiles]
    tuned = {profile.sequence.opt for profile in profiles}
    plan = plan_cases(opened.manifest.spec, opened.architecture, [*lengths, *tuned], max_length)
    plan = with_profiles(plan, profiles, max_length)
    refuse_if_too_large(opened, plan)
    return check_parity(opened, chosen, plan, factor=FACTOR if factor is None else factor, seed=seed, progress=progress)


def refuse_numbers(lengths: Sequence[int], max_length: int | None, factor: float | None) -> None:
    """Raise `SpecError` for numbers that `check` cannot work with."""
    for name, value in (("length", min(lengths, default=1)), ("max_length", 1 if max_length is None else max_length)):
        if value < 1:
            raise SpecError(f"{name} of a check is at least 1", got=value, wanted=f"{name} >= 1")
    if factor is not None and not 1 <= factor < float("inf"):
        raise SpecError("a target loses at least what eager PyTorch loses", got=factor, wanted="1 <= factor < inf")


def candidates(bundle: Bundle, targets: Sequence[str] | None) -> Iterator["Candidate"]:
    """What is to be checked: what was asked for, or else everything that runs here."""
    from funnel_export.targets import get_target, refuse_odd_path, require, target_names
    from funnel_export.verify.parity import Candidate

    refuse_odd_path(bundle)
    dtype = bundle.manifest.dtype
    engines = _engines_by_target(bundle)
    for target in map(get_target, dict.fromkeys(targets or target_names())):
        if targets is not None:
            require(target, dtype)
        elif not target.availability().available or target.supports(dtype) is not None:
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
    from funnel_export.targets import refuse_odd_name

    found: dict[str, list[str]] = {}
    for name in engine_names(bundle):
        try:
            refuse_odd_name(name)
        except SpecError as err:
            folder = bundle.path / ENGINES / name
            raise BundleError(err.what, got=folder, wanted="another name", hint="rename its folder") from err
        try:
            found.setdefault(read_engine_manifest(bundle.path / ENGINES / name).target, []).append(name)
        except BundleError as err:  # of whatever target it is
            _raise_or_warn(err, strict=False)
    return found


def _open_engine(bundle: Bundle, target: "Target", name: str, *, strict: bool) -> Engine | None:
    """An engine that is whole and fits; otherwise an error, or a warning and None."""
    from funnel_export.targets import refuse_misfit

    try:
        engine = load_engine(bundle, name)
        refuse_misfit(target, engine)
    except FunnelExportError as err:
        _raise_or_warn(err, strict=strict)
        return None
    return engine


def _raise_or_warn(err: FunnelExportError, *, strict: bool) -> None:
    if strict:
        raise err
    warnings.warn(f"an engine is left out: {err}", FunnelExportWarning, stacklevel=2)
