"""`bench`: how fast is a bundle with its funnel, beside the dense model in the same runtimes?"""

import contextlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from funnel_export.atomic import folder_beside
from funnel_export.bundle import REPORTS, Bundle, load_bundle
from funnel_export.checking import candidates, check
from funnel_export.compiling import compile_bundle
from funnel_export.engine import processor
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.pipeline import export
from funnel_export.progress import Progress, no_progress

if TYPE_CHECKING:
    from funnel_export.verify.latency import LatencyReport
    from funnel_export.verify.parity import Candidate, ParityReport
    from funnel_export.verify.race import Contender

LENGTHS, BATCHES, ROUNDS = (128, 512), (1,), 9
GATE_ROUNDS = 6
"""Fewest calls for a gate: the smallest and largest of n calls enclose the median with confidence 1 - 2 / 2^n."""
RUNTIMES = ("eager", "torch.compile")
DEVICES = ("auto", "cpu", "cuda")


def bench(
    bundle: Bundle | str | os.PathLike[str],
    *,
    baseline: Bundle | str | os.PathLike[str] | None = None,
    targets: Sequence[str] | None = None,
    pytorch: Sequence[str] = RUNTIMES,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    min_speedup: float | None = None,
    device: str = "auto",
    seed: int = 0,
    parity: "ParityReport | None" = None,
    progress: Progress = no_progress,
) -> "LatencyReport":
    """Time a bundle and the dense model side by side; the report goes into the bundle's `reports/latency.json`.

    Dense and funnel run in PyTorch, in every target and as every engine of the bundle that runs here; all take turns.
    No parity, no number: what does not agree with eager PyTorch has none.

    Args:
        bundle: a bundle with a funnel, or its folder.
        baseline: a dense bundle of the same checkpoint; without, one is exported and removed again. Of each engine its
            like is compiled from it, with the same options and profiles.
        targets: names of targets; by default every one that can run the bundle here, with the engines that fit.
        pytorch: which of `eager` and `torch.compile` run beside them.
        lengths: tokens of a row.
        batches: rows of a batch.
        rounds: counted calls of each.
        min_speedup: how many times as fast each target must be with the funnel as without, by the lower end of the 95 %
            interval.
        device: what PyTorch runs on: `cpu`, `cuda`, or `auto`, which is a GPU if PyTorch has one.
        seed: seed of the tokens.
        parity: what `check` said of this bundle; without, it is asked.
        progress: called with the name of each step.

    Raises:
        SpecError: for a dense bundle, or numbers that cannot be.
        BundleError: if a bundle is not whole, or the baseline is no dense bundle of these weights.
        TargetUnavailableError: if a target that was asked for, or every target, does not run the bundle here.
        TargetRefusedError: if a target refuses the graph.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    shapes = shapes_to_time(opened, lengths, batches, rounds, min_speedup, pytorch)
    source = opened if baseline is None else _dense_bundle(opened, baseline)
    chosen = _chosen_device(device)
    found = list(candidates(opened, targets))
    if not found:
        raise TargetUnavailableError("no target here runs this bundle", hint="funnel-export doctor")
    if parity is None:
        parity = check(opened, targets=targets, max_length=max(lengths), seed=seed, progress=progress)
    from funnel_export.report.write import LATENCY, keep_report, refuse_link
    from funnel_export.verify.inputs import Case
    from funnel_export.verify.outcome import evaluate
    from funnel_export.verify.race import race

    refuse_link(opened.path / REPORTS)
    failed = {result.name for result in parity.targets if not result.passed}
    sound = [candidate for candidate in found if candidate.name not in failed]
    with _baseline(opened, source, progress) as dense:
        contenders = list(_in_pytorch(opened, dense, pytorch, chosen))
        contenders += _in_targets(opened, dense, sound, shapes, progress)
        tokens = {shape: Case((shape[1],) * shape[0]).tokens(opened.architecture, seed) for shape in shapes}
        ids = {shape: tokens[shape]["input_ids"].tolist() for shape in shapes}
        entries = race(contenders, ids, rounds=rounds, progress=progress)
    report = evaluate(opened, parity, entries, shapes, _conditions(found), min_speedup)
    progress("report")
    keep_report(opened, LATENCY, report)
    return report


def shapes_to_time(
    bundle: Bundle,
    lengths: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    min_speedup: float | None,
    pytorch: Sequence[str] = (),
) -> list[tuple[int, int]]:
    """Batches and lengths, the small ones first; arguments as those of `bench`.

    Raises:
        SpecError: for a dense bundle, or numbers that cannot be.
    """
    if bundle.manifest.spec is None:
        raise SpecError(
            "a dense bundle has nothing to be compared with",
            got=bundle.path,
            wanted="a bundle with a funnel",
            hint="name the bundle with the funnel, and the dense one as --baseline",
        )
    for name, values in (("length", lengths), ("batch", batches), ("rounds", [rounds])):
        if not values or min(values) < 1:
            raise SpecError(f"{name} of a benchmark is at least 1", got=list(values), wanted=f"{name} >= 1")
    if min_speedup is not None and not 0 < min_speedup < float("inf"):
        raise SpecError("a speedup is a positive number", got=min_speedup, hint="--min-speedup 1.2")
    if min_speedup is not None and rounds < GATE_ROUNDS:
        raise SpecError(
            "too few rounds for a gate: noise could pass it",
            got=f"{rounds} rounds",
            wanted=f"at least {GATE_ROUNDS}: fewer have no 95 % interval",
            hint=f"--rounds {ROUNDS}",
        )
    unknown = set(pytorch) - set(RUNTIMES)
    if unknown:
        raise SpecError("PyTorch has no such way to run", got=", ".join(unknown), wanted=" | ".join(RUNTIMES))
    return sorted({(batch, length) for batch in batches for length in lengths}, key=lambda s: (s[0] * s[1], s))


@contextlib.contextmanager
def _baseline(bundle: Bundle, source: Bundle, progress: Progress) -> Iterator[Bundle]:
    """The dense model of `source` as a bundle, in a folder of its own: its engines come and go."""
    path = bundle.path.resolve()
    if not os.access(path.parent, os.W_OK):  # there, weights could be linked
        path = Path(tempfile.gettempdir(), path.name)
    with folder_beside(path) as folder:
        manifest = bundle.manifest
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of float16, which was said when the bundle was exported
            yield export(
                source.path,
                folder / "dense",
                funnel=None,
                task=manifest.task,
                dtype=manifest.dtype,
                opset=manifest.opset,
                logits=manifest.logits,
                progress=lambda step, *_: progress(f"dense baseline: {step}"),
            )


def _dense_bundle(bundle: Bundle, given: Bundle | str | os.PathLike[str]) -> Bundle:
    """The bundle that was given as the dense model of another."""
    dense = given if isinstance(given, Bundle) else load_bundle(given)
    if dense.manifest.spec is not None or dense.manifest.weights != bundle.manifest.weights:
        raise BundleError(
            "this is no dense bundle of the same weights",
            got=f"{dense.path}, funnel {dense.manifest.spec or 'none'}",
            wanted="a bundle of the same checkpoint with --funnel none",
        )
    return dense


def _in_pytorch(bundle: Bundle, dense: Bundle, runtimes: Sequence[str], device: str) -> Iterator["Contender"]:
    from funnel_export.verify.contender import Lineup
    from funnel_export.verify.latency import Model
    from funnel_export.verify.race import Contender

    for runtime in runtimes:
        for model, source in ((Model.DENSE, dense), (Model.FUNNEL, bundle)):
            lineup = Lineup(bundle=source.path, compiled=runtime == "torch.compile", device=device)
            yield Contender.of(runtime, model, bundle.manifest.dtype, lineup)


def _chosen_device(device: str) -> str:
    """PyTorch's device by its name; `auto` is a GPU if PyTorch has one."""
    import torch

    if device not in DEVICES:
        raise SpecError("PyTorch does not run on such a device here", got=device, wanted=" | ".join(DEVICES))
    here = torch.cuda.is_available()
    if device == "cuda" and not here:
        raise TargetUnavailableError("PyTorch has no GPU here", got=f"torch {torch.__version__}", hint="--device cpu")
    return ("cuda" if here else "cpu") if device == "auto" else device


def _in_targets(
    bundle: Bundle,
    dense: Bundle,
    found: Sequence["Candidate"],
    shapes: Sequence[tuple[int, int]],
    progress: Progress,
) -> Iterator["Contender"]:
    """Each target and engine of the bundle, with its like of the dense model."""
    from funnel_export.verify.contender import Lineup
    from funnel_export.verify.inputs import Case
    from funnel_export.verify.latency import Model
    from funnel_export.verify.race import Contender

    for candidate in found:
        taken = frozenset(shape for shape in shapes if candidate.takes(Case((shape[1],) * shape[0])))
        engine = candidate.engine
        if engine is not None:
            compile_bundle(
                dense,
                candidate.target.name,
                profiles=engine.manifest.profiles,
                options=engine.manifest.options,
                name=engine.name,
                progress=lambda step, *_, name=engine.name: progress(f"{name} of the dense baseline: {step}"),
            )
        for model, source in ((Model.DENSE, dense), (Model.FUNNEL, bundle)):
            lineup = Lineup(
                bundle=source.path, target=candidate.target.name, engine=None if engine is None else engine.name
            )
            yield Contender.of(candidate.name, model, bundle.manifest.dtype, lineup, shapes=taken)


def _conditions(found: Sequence["Candidate"]) -> dict[str, str]:
    """What latencies depend on."""
    packages = ("torch", "transformers", "funnel-export")
    return {
        "processor": processor(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **{each.target.name: str(each.target.availability().version) for each in found},
    }
