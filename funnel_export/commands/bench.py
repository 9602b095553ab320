"""`bench`: the latency of a bundle compared with the dense model in the same runtimes."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from funnel_export.bundle.engine import changed_engines
from funnel_export.bundle.load import Bundle, Graph, check_made_from, load_bundle
from funnel_export.bundle.ports import PortKind, dynamic_axes
from funnel_export.commands.baseline import baseline, check_graph, open_baseline
from funnel_export.commands.check import compare
from funnel_export.commands.compile import compile_bundle, default_engine_name
from funnel_export.commands.unquantized import open_original
from funnel_export.errors import FunnelExportError, FunnelExportWarning, SpecError, TargetUnavailableError
from funnel_export.progress import Progress, no_progress
from funnel_export.report.files import LATENCY
from funnel_export.spec.choices import EAGER, PYTORCH, TORCH_COMPILE, Device, parse_choice
from funnel_export.spec.defaults import BATCHES, LEAST_ROUNDS, LENGTHS, MAX_KL, ROUNDS, SEED
from funnel_export.spec.profile import SEQUENCE, Profile, Range
from funnel_export.system.machine import conditions
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import validate_timeout
from funnel_export.targets.options import options_of_engine
from funnel_export.verify.candidates import candidates

if TYPE_CHECKING:
    from funnel_export.latency.latency_report import LatencyReport
    from funnel_export.latency.shape import Shape
    from funnel_export.latency.trials import Runner
    from funnel_export.verify.candidates import Candidate
    from funnel_export.verify.parity_report import ParityReport


def bench(
    bundle: Bundle | str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    dense: Bundle | str | os.PathLike[str] | None = None,
    pytorch: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    min_speedup: float | None = None,
    device: Device | str = Device.AUTO,
    seed: int = SEED,
    max_length: int | None = None,
    timeout: float = SILENCE,
    unquantized: str | os.PathLike[str] | None = None,
    parity: "ParityReport | None" = None,
    reports: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> "LatencyReport":
    """Time a bundle and the dense model side by side; the report goes into the bundle's `reports/latency.json`.

    Both run in PyTorch, in every target, and as every engine of the bundle that runs on this machine; their calls are
    interleaved. The dense baseline is exported from the bundle's own weights, and deleted at the end. For every engine
    the dense counterpart is compiled with the same options and profiles. No parity, no number: what does not agree with
    eager PyTorch gets none, nor does a target on shapes that neither eager PyTorch nor the parity check ran. If eager
    PyTorch is not timed, the dense model has a parity check of its own.

    A bundle that generates text is timed twice on every shape: the prompt, which is the time to the first token, and
    the steps after it, in milliseconds for each token.

    Args:
        bundle: a bundle with a funnel, or its folder.
        targets: names of targets; by default all that can run the bundle on this machine, with the engines that fit.
        engines: names of engines of the bundle; only these are timed, plus the graph in each of `targets`.
        dense: a dense bundle, or its folder, to use as the baseline instead of exporting one. It must have the same
            weights, config, task, dtype, opset and logits; with `min_speedup` also the graph that this version exports.
            It is not written to.
        pytorch: ways to run PyTorch, of `eager` and `torch.compile`; by default both, or `eager` alone for a bundle
            that generates text: torch.compile does not take its growing caches. torch.compile needs `eager`, with which
            its outputs are compared.
        lengths: tokens per row, at most `max_position_embeddings` with the steps after them; by default 128 and 512, or
            the most that the model takes.
        batches: rows per batch.
        rounds: counted calls of each runner, at least 6, since fewer have no 95 % interval.
        min_speedup: how many times as fast each target must be with the funnel as without, by the lower end of the 95 %
            interval.
        device: device of PyTorch: `cpu`, `cuda`, or `auto`, which is a GPU if PyTorch has one and all timed targets run
            on one.
        seed: seed of the tokens.
        max_length: the longest rows of the parity check; by default the longest timed ones, or the shortest that an
            engine takes if those are longer.
        timeout: seconds that one call of a runner may take, and that a build may make no progress; what takes longer is
            killed and gets no numbers.
        unquantized: for a quantized bundle, what it was made from: the parity check says what the bits cost, too.
        parity: the report of a `check` of this bundle that covers everything that is timed; by default a new one.
        reports: folder for the reports instead of the bundle's `reports`, for example for a read-only bundle.
        progress: called with the name of each step.

    Raises:
        SpecError: for a dense bundle, invalid numbers, an engine that is not in the bundle, a `dense` that is not the
            dense counterpart of the bundle, a `parity` that does not cover everything that is timed, or a `reports`
            that cannot be written or holds other files with the names of reports.
        BundleError: if the bundle is damaged, or `parity` is of another bundle.
        TargetUnavailableError: if a requested target, or every target, cannot run the bundle on this machine.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    validate_funnelled(opened)
    shapes = shapes_to_time(opened, lengths, batches, rounds, min_speedup)
    runtimes = ways_to_run_pytorch(opened, pytorch)
    asked = parse_choice("device", Device, device)
    validate_timeout(timeout)
    given = None if dense is None else open_baseline(opened, dense)
    original = open_original(opened, unquantized, None, MAX_KL)
    found = list(candidates(opened, targets, engines, timeout))
    if not found:
        raise TargetUnavailableError("no target here runs this bundle", hint="funnel-export doctor")
    chosen = _chosen_device(asked, found)
    from funnel_export.latency.trials import run_trials
    from funnel_export.latency.verdict import evaluate
    from funnel_export.report.folder import reports_folder
    from funnel_export.report.pages import keep_report
    from funnel_export.verify.cases import Case

    folder = reports_folder(opened, reports)
    if given is not None and min_speedup is not None:
        check_graph(opened, given, progress)
    comparing: dict[str, Any] = {
        # With eager PyTorch, each timed shape is compared with it anyway.
        "shapes": [] if EAGER in runtimes else [(shape.batch, shape.tokens) for shape in shapes],
        "max_length": _longest(shapes, found) if max_length is None else max_length,
        "seed": seed,
        "timeout": timeout,
    }
    if parity is None:
        parity = compare(opened, targets=targets, engines=engines, original=original, progress=progress, **comparing)
    parity = _of_what_is_timed(parity, opened, found)
    passed = {result.name for result in parity.targets if result.passed}
    sound = [candidate for candidate in found if candidate.name in passed]
    with baseline(opened, given, progress) as twin:
        unbuilt = _build_baselines(twin, sound, timeout, progress)
        built = [candidate for candidate in sound if candidate.name not in unbuilt]
        if EAGER not in runtimes:
            unbuilt |= _compare_baselines(twin, built, progress, comparing)
            built = [candidate for candidate in built if candidate.name not in unbuilt]
        runners = list(_in_pytorch(opened, twin, runtimes, chosen))
        runners += _in_targets(opened, twin, built, shapes)
        tokens = {shape: Case((shape.tokens,) * shape.batch).tokens(opened.architecture, seed) for shape in shapes}
        ids = {shape: tokens[shape][PortKind.TOKENS].tolist() for shape in shapes}
        records = run_trials(runners, ids, rounds=rounds, timeout=timeout, progress=progress)
    report = evaluate(opened, parity, records, shapes, _conditions(found), min_speedup, unbuilt=unbuilt)
    progress("report")
    keep_report(opened, LATENCY, report, folder)
    return report


def shapes_to_time(
    bundle: Bundle,
    lengths: Sequence[int] | None,
    batches: Sequence[int],
    rounds: int,
    min_speedup: float | None,
) -> "list[Shape]":
    """The shapes to time, smallest first; the arguments are those of `bench`.

    Raises:
        SpecError: for invalid numbers.
    """
    from funnel_export.latency.shape import Shape, steps_of

    funnel = bundle.spec.funnel
    steps = steps_of(1 if funnel is None else funnel.stride) if bundle.spec.task.has_past else 0
    longest = bundle.architecture.max_position_embeddings - steps
    lengths = [min(length, longest) for length in LENGTHS] if lengths is None else lengths
    for name, values in (("length", lengths), ("batch", batches)):
        if not values or min(values) < 1:
            raise SpecError(f"invalid {name}", got=list(values), wanted="one or more numbers, each at least 1")
    if max(lengths) > longest:
        raise SpecError(
            "length exceeds max_position_embeddings",
            got=f"length {max(lengths)}",
            wanted=f"at most {longest} tokens" + f", and {steps} steps after them" * bool(steps),
        )
    if min_speedup is not None and not 0 < min_speedup < float("inf"):
        raise SpecError(
            "invalid minimum speedup", got=min_speedup, wanted="a positive, finite number", hint="--min-speedup 1.2"
        )
    if rounds < LEAST_ROUNDS:
        raise SpecError(
            "too few rounds for a 95 % interval of the median",
            got=f"{rounds} rounds",
            wanted=f"at least {LEAST_ROUNDS}",
            hint=f"--rounds {ROUNDS}",
        )
    kinds = dict.fromkeys((0, steps))
    shapes = {Shape(batch, length, each) for batch in batches for length in lengths for each in kinds}
    return sorted(shapes, key=lambda shape: (shape.batch * shape.length, shape))


def validate_funnelled(bundle: Bundle) -> None:
    """Raise `SpecError` for a bundle without a funnel."""
    if bundle.spec.funnel is None:
        raise SpecError(
            "the bundle has no funnel",
            got=bundle.path,
            wanted="a bundle with a funnel",
            hint="pass the bundle with the funnel; bench exports the dense model itself",
        )


def ways_to_run_pytorch(bundle: Bundle, asked: Sequence[str] | None) -> list[str]:
    """The ways to run PyTorch; the arguments are those of `bench`.

    Raises:
        SpecError: for unknown ones, those that do not take the bundle, and torch.compile alone.
    """
    wanted = (EAGER,) if bundle.spec.task.has_past else PYTORCH
    if asked is None:
        return list(wanted)
    unknown = [each for each in asked if each not in PYTORCH]
    if unknown:
        raise SpecError("unknown way to run PyTorch", got=", ".join(unknown), wanted=" | ".join(PYTORCH))
    if not set(asked) <= set(wanted):
        raise SpecError(
            "torch.compile is not timed with a cache: it would compile the model again in every step",
            got=f"{TORCH_COMPILE} for a bundle of the task {bundle.spec.task}",
            wanted=" | ".join(wanted),
            hint=f"--pytorch {EAGER}",
        )
    if set(asked) == {TORCH_COMPILE}:
        raise SpecError(
            "nothing is timed with which the outputs of torch.compile could be compared",
            got=f"{TORCH_COMPILE} alone",
            wanted=f"{EAGER} beside it",
            hint=f"--pytorch {EAGER} --pytorch {TORCH_COMPILE}",
        )
    return list(dict.fromkeys(asked))


def _longest(shapes: "Sequence[Shape]", found: Sequence["Candidate"]) -> int:
    """The longest rows of the parity check: the longest timed ones, or the shortest of an engine if longer."""
    least = [min(profile.axes[SEQUENCE].min for profile in each.profiles) for each in found if each.profiles]
    return max([shape.tokens for shape in shapes] + least)


def _of_what_is_timed(parity: "ParityReport", bundle: Bundle, found: Sequence["Candidate"]) -> "ParityReport":
    """The parity report for only what is timed; an error if anything is missing or has changed since."""
    hint = "funnel-export check again"
    check_made_from(parity, bundle, "the parity report", hint)
    names = [candidate.name for candidate in found]
    timed = parity.only(names)
    missing = set(names) - {result.name for result in timed.targets} | set(changed_engines(bundle, timed.engines))
    if missing:
        raise SpecError(
            "the parity report does not cover everything that is timed", got=f"without {sorted(missing)}", hint=hint
        )
    return timed


def _in_pytorch(bundle: Bundle, dense: Bundle, runtimes: Iterable[str], device: str) -> Iterator["Runner"]:
    from funnel_export.latency.latency_report import Model
    from funnel_export.latency.runner import RunnerSetup
    from funnel_export.latency.trials import Runner

    for runtime in runtimes:
        for model, source in ((Model.DENSE, dense), (Model.FUNNEL, bundle)):
            setup = RunnerSetup(bundle=source.path, compiled=runtime == TORCH_COMPILE, device=device)
            yield Runner.of(runtime, model, bundle.spec.dtype, setup)


def _chosen_device(device: Device, found: Sequence["Candidate"]) -> str:
    """The name of PyTorch's device; `auto` is a GPU if PyTorch has one and all timed targets run on one."""
    import torch

    here = torch.cuda.is_available()
    if device is Device.CUDA and not here:
        raise TargetUnavailableError("PyTorch finds no GPU", got=f"torch {torch.__version__}", hint="--device cpu")
    on_gpu = {each.name: each.on_gpu for each in found}
    best = Device.CUDA if here and all(on_gpu.values()) else Device.CPU
    chosen = best if device is Device.AUTO else device
    elsewhere = [name for name, gpu in on_gpu.items() if gpu != (chosen is Device.CUDA)]
    if elsewhere:
        warnings.warn(
            f"PyTorch runs on {chosen}, and {', '.join(elsewhere)} on another device: their times are not comparable",
            FunnelExportWarning,
            stacklevel=3,
        )
    return chosen


def _build_baselines(dense: Bundle, found: Sequence["Candidate"], timeout: float, progress: Progress) -> dict[str, str]:
    """Compile the dense counterpart of every candidate with engines; return the reasons of failures by name."""
    failed = {}
    (graph,) = dense.graphs.values()
    for candidate in found:
        if not candidate.engines:
            continue
        name = candidate.name
        try:
            compile_bundle(
                dense,
                candidate.target.name,
                profiles=_dense_profiles(graph, candidate),
                options=_options(candidate),
                name=default_engine_name(graph, name),
                timeout=timeout,
                progress=lambda step, *_, name=name: progress(f"{name} of the dense baseline: {step}"),
            )
        except FunnelExportError as err:  # the others are still timed
            failed[name] = f"it could not be compiled: {err}"
    return failed


def _compare_baselines(
    dense: Bundle, found: Sequence["Candidate"], progress: Progress, comparing: Mapping[str, Any]
) -> dict[str, str]:
    """Compare the dense counterpart of every candidate with eager PyTorch; return the reasons of failures by name."""
    from funnel_export.latency.verdict import describe_failure

    if not found:
        return {}
    (graph,) = dense.graphs.values()
    report = compare(
        dense,
        targets=[candidate.target.name for candidate in found if not candidate.engines],
        engines=[default_engine_name(graph, candidate.name) for candidate in found if candidate.engines],
        progress=lambda step, *_: progress(f"dense baseline: {step}"),
        **comparing,
    )
    return {result.name: describe_failure(result) for result in report.targets if not result.passed}


def _options(candidate: "Candidate") -> dict[str, Any]:
    """The options that the candidate's engines were compiled with, without names of files.

    Raises:
        SpecError: if they differ, or are not options of the target.
    """
    first, *others = (engine.manifest for engine in candidate.engines.values())
    for other in others:
        if other.options != first.options:
            raise SpecError(
                "the engines were compiled with different options, so there is no dense counterpart",
                got=f"{first.graph}: {first.options}, {other.graph}: {other.options}",
                wanted="engines of the same options",
            )
    return options_of_engine(candidate.target.options, first.options).recorded()


def _dense_profiles(graph: Graph, candidate: "Candidate") -> list[Profile]:
    """The profiles of the candidate's engines, with the axes that the dense model's graph has."""
    axes = dynamic_axes(graph.inputs)
    named: dict[str, dict[str, Range]] = {}
    for profile in candidate.profiles:
        named.setdefault(profile.name, {}).update(profile.axes)
    return [
        Profile(name=name, axes={axis: ranges[axis] for axis in axes if axis in ranges})
        for name, ranges in named.items()
    ]


def _in_targets(
    bundle: Bundle, dense: Bundle, found: Sequence["Candidate"], shapes: "Sequence[Shape]"
) -> Iterator["Runner"]:
    """Runners for each target and engine of the bundle, and for its dense counterpart."""
    from funnel_export.latency.latency_report import Model
    from funnel_export.latency.runner import RunnerSetup
    from funnel_export.latency.trials import Runner

    (graph,) = dense.graphs.values()
    for candidate in found:
        taken = frozenset(shape for shape in shapes if candidate.takes((shape.batch, shape.tokens)))
        own = tuple(engine.name for engine in candidate.engines.values())
        counterpart = (default_engine_name(graph, candidate.name),) if own else ()
        for model, source, engines in ((Model.DENSE, dense, counterpart), (Model.FUNNEL, bundle, own)):
            setup = RunnerSetup(bundle=source.path, target=candidate.target.name, engines=engines)
            yield Runner.of(candidate.name, model, bundle.spec.dtype, setup, shapes=taken)


def _conditions(found: Sequence["Candidate"]) -> dict[str, str]:
    """Processor and versions, on which latencies depend."""
    targets = {each.target.name: str(each.target.availability().version) for each in found}
    return conditions(("torch", "transformers", "funnel-export")) | targets
