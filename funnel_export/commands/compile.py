"""`compile_bundle`: compile a graph of a bundle into an engine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from funnel_export.bundle.engine import (
    BuiltFor,
    Engine,
    EngineManifest,
    is_engine,
    read_engine_manifest,
    record_file,
    set_name,
    verify_file,
)
from funnel_export.bundle.load import Bundle, Graph, check_made_from, load_bundle
from funnel_export.bundle.manifest import ENGINES, MANIFEST, MODEL
from funnel_export.bundle.ports import dynamic_axes
from funnel_export.bundle.signature import CHANGES, NUM_LOGITS, PAST_SEQUENCE, PAST_SLOTS, SLOTS
from funnel_export.bundle.weights import WeightRecord
from funnel_export.errors import BundleError, SpecError
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.profile import BATCH, MOST_PROFILES, SEQUENCE, Profile, Range
from funnel_export.system.atomic import replace_folder
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import Compiled, CompileRequest, Target, validate_timeout
from funnel_export.targets.options import parse_options
from funnel_export.targets.registry import get_target, validate_engine_name, validate_path

LONGEST = 2048
"""Longest text of the default profiles, in tokens, unless the model's limit is lower."""
MOST_LOGITS = 16
"""Most columns of a chunk with logits in the default profiles: more than the candidates of speculative decoding."""


def compile_bundle(
    bundle: Bundle | str | os.PathLike[str],
    target: str,
    *,
    graph: str | None = None,
    profiles: Sequence[Profile | str] = (),
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    timeout: float = SILENCE,
    progress: Progress = no_progress,
) -> Engine:
    """Compile a graph of a bundle for a target; the engine goes into the bundle's `engines/`.

    Args:
        bundle: a bundle or its folder.
        target: name of a target.
        graph: role of the graph; by default the only one.
        profiles: optimization profiles, each a `Profile` or its text; several need different names. The default, for
            TensorRT only, is batches of 1 to 4 and up to 2048 tokens.
        options: build options, under the runtime's names.
        name: the engine's folder in `engines/`; by default the target and the device. An engine of the same name is
            replaced when the new one is complete.
        timeout: seconds without progress after which a build in a separate process (TensorRT) is stopped.
        progress: called with the name of each step.

    Raises:
        SpecError: if options, profiles or graph are invalid, or not supported by the target.
        BundleError: if the bundle is invalid, or the engine's folder holds something else or cannot be written.
        TargetUnavailableError: if the target cannot compile this graph here.
        TargetRefusedError: if it refuses the graph.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    validate_path(opened)
    chosen, source = get_target(target), _graph(opened, graph)
    request = CompileRequest(
        graph=source,
        profiles=_profiles(chosen, opened, source, profiles),
        options=parse_options(chosen.options, options or {}),
    )
    built_for = chosen.built_for(request)
    called = default_engine_name(source, chosen.engine_name(built_for)) if name is None else name
    validate_engine_name(called)
    validate_engine_name(set_name(called, source.role))  # the name in reports
    folder = opened.path / ENGINES / called
    if folder.parent.is_symlink():
        raise BundleError(
            "the bundle's engines are outside the bundle",
            got=f"a symbolic link at {folder.parent}",
            wanted="a folder",
        )
    validate_timeout(timeout)
    request = replace(request, timeout=timeout, earlier=_earlier(chosen, opened, folder))
    with replace_folder(
        folder, is_engine, hint="use another --name, or a copy of the bundle that you may write"
    ) as fresh:
        compiled = chosen.compile(request, fresh, progress)
        manifest = _manifest(chosen, request, opened.manifest.weights, built_for, compiled, fresh)
        (fresh / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Engine(folder, manifest)


def default_engine_name(graph: Graph, name: str) -> str:
    """The default name of an engine: the target's, with the graph's role in front unless it is `model`."""
    return name if graph.role == MODEL else f"{graph.role}-{name}"


def _graph(bundle: Bundle, role: str | None) -> Graph:
    """The graph with a role; without one, the bundle's only graph."""
    graphs = bundle.graphs
    if role is None and len(graphs) == 1:
        return next(iter(graphs.values()))
    if role is None or role not in graphs:
        raise SpecError(
            "the bundle has several graphs" if role is None else "the bundle has no such graph",
            got=", ".join(graphs) if role is None else repr(role),
            wanted=f"one of {', '.join(graphs)}",
            hint=f"--graph {next(iter(graphs))}",
        )
    return graphs[role]


def default_profiles(bundle: Bundle, graph: Graph) -> tuple[Profile, ...]:
    """The profiles of an engine for which none is given: batches of 1 to 4, and texts of up to `LONGEST` tokens.

    A graph with a cache has two: `prompt`, tuned for chunks of 512 tokens, and `step` for single tokens.
    """
    axes = dynamic_axes(graph.inputs)
    longest = min(LONGEST, bundle.architecture.max_position_embeddings)
    usual = Range(min=1, opt=min(512, longest), max=longest)
    if not bundle.spec.task.has_past:
        return (_profile("default", axes, {SEQUENCE: usual}),)
    stride = 1 if bundle.spec.funnel is None else bundle.spec.funnel.stride
    slots = Range(min=1, opt=-(-usual.opt // stride), max=-(-longest // stride))
    past = {PAST_SEQUENCE: usual, PAST_SLOTS: slots, NUM_LOGITS: Range(min=1, opt=1, max=min(MOST_LOGITS, longest))}
    one, carried = Range(min=1, opt=1, max=1), Range(min=1, opt=slots.opt + 1, max=slots.max + 1)
    prompt = {SEQUENCE: usual, SLOTS: slots, CHANGES: carried}
    step = {SEQUENCE: one, SLOTS: one, CHANGES: Range(min=1, opt=1, max=2)}
    return _profile("prompt", axes, past | prompt), _profile("step", axes, past | step)


def _profile(name: str, axes: Sequence[str], ranges: Mapping[str, Range]) -> Profile:
    known = {BATCH: Range(min=1, opt=1, max=4), **ranges}
    return Profile(name=name, axes={axis: known[axis] for axis in axes})


def _profiles(target: Target, bundle: Bundle, graph: Graph, given: Sequence[Profile | str]) -> tuple[Profile, ...]:
    axes = dynamic_axes(graph.inputs)
    profiles = [Profile.parse(each, axes) if isinstance(each, str) else each for each in given]
    for profile in profiles:
        profile.validate_axes(axes)
    if profiles and not target.takes_profiles:
        raise SpecError(
            f"{target.name} has no optimization profiles",
            got=", ".join(map(str, profiles)),
            wanted="no --profile, since its engines accept every shape",
        )
    if len(profiles) > MOST_PROFILES:
        raise SpecError(
            "too many optimization profiles",
            got=len(profiles),
            wanted=f"at most {MOST_PROFILES}",
            hint="--profile with wider ranges, or several engines",
        )
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise SpecError(
            "several optimization profiles have the same name",
            got=", ".join(map(str, profiles)),
            wanted="a different name for each",
            hint="--profile step:batch=1:8:8,sequence=1 --profile prompt:batch=1,sequence=1:512:2048",
        )
    if not profiles and target.takes_profiles:
        return default_profiles(bundle, graph)
    return tuple(profiles)


def _earlier(target: Target, bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Files of the existing engine that the target can reuse; none if it is damaged or from another bundle."""
    try:
        manifest = read_engine_manifest(folder)
        check_made_from(manifest, bundle, f"the engine {folder}", "compile the bundle again")
        reused = [record for record in manifest.files if record.file in target.reuses]
        for record in reused:
            verify_file(folder / record.file, record)
    except BundleError:
        return {}
    return {record.file: folder / record.file for record in reused}


def _manifest(
    target: Target,
    request: CompileRequest,
    weights: list[WeightRecord],
    built_for: BuiltFor,
    compiled: Compiled,
    folder: Path,
) -> EngineManifest:
    graph = request.graph
    return EngineManifest(
        target=target.name,
        version=str(target.availability().version),
        built_for=built_for,
        dtype=graph.dtype,
        graph=graph.role,
        graph_sha256=graph.sha256,
        weights=weights,
        profiles=list(request.profiles),
        options=request.options.recorded(),
        files=[record_file(folder / file) for file in compiled.files],
        facts=dict(compiled.facts),
        versions={"funnel-export": version("funnel-export")},
    )
