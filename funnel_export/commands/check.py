"""`check`: compare the outputs of targets and engines with eager PyTorch."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from funnel_export.bundle.engine import engine_names
from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.commands.unquantized import open_original
from funnel_export.errors import SpecError, TargetUnavailableError
from funnel_export.progress import Progress, no_progress
from funnel_export.report.files import PARITY
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import FACTOR, MAX_KL, SEED
from funnel_export.spec.profile import SEQUENCE
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import validate_timeout
from funnel_export.verify.candidates import candidates

if TYPE_CHECKING:
    from funnel_export.verify.parity_report import ParityReport
    from funnel_export.verify.quantization_cost import Original


def check(
    bundle: Bundle | str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    lengths: Sequence[int] = (),
    max_length: int | None = None,
    factor: float = FACTOR,
    seed: int = SEED,
    timeout: float = SILENCE,
    unquantized: str | os.PathLike[str] | None = None,
    data: DataSpec | Places | None = None,
    max_kl: float = MAX_KL,
    reports: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> "ParityReport":
    """Compare the outputs of targets with eager PyTorch; the report goes into the bundle's `reports/parity.json`.

    `report.md`, `report.html` and the pictures in that folder are rewritten.

    A target is compared on the bundle's graph, if it runs graphs, and on every engine that the bundle has for it. A
    target that refuses the graph gets an error in the report; the others are still compared.

    The reference of a quantized bundle is eager PyTorch on the same quantized weights. What they cost is a question of
    its own: with `unquantized`, each weight is compared with the original one, and the outputs of eager PyTorch on the
    same batches with those of the original weights.

    Args:
        bundle: a bundle or its folder.
        targets: names of targets; by default all that can run the bundle on this machine, with the engines that fit.
        engines: names of engines of the bundle; only these are compared, plus the graph in each of `targets`.
        lengths: sequence lengths to check in addition to those around the stride and the sliding window.
        max_length: leave out longer sequences; the report lists the lengths left out.
        factor: how many times eager PyTorch's own error in the bundle's dtype is allowed, at least 1.
        seed: seed of the tokens.
        timeout: seconds without progress after which the build of an engine with inner values (TensorRT) is stopped.
        unquantized: for a quantized bundle, the bundle or checkpoint that it was made from.
        data: documents on which the loss of both is compared too, as `evaluate` takes them.
        max_kl: the largest mean KL divergence that quantized weights may cause, in nats.
        reports: folder for the reports instead of the bundle's `reports`, for example for a read-only bundle.
        progress: called with the name of each step.

    Raises:
        SpecError: for invalid numbers, an engine that is not in the bundle, an `unquantized` for a bundle that is not
            quantized or `data` without it, or a `reports` that cannot be written or
            holds other files with the names of reports.
        BundleError: if the bundle is damaged, or a requested engine is damaged or does not fit this machine.
        CheckpointError: if `unquantized` is another model, or is quantized too.
        DataError: if documents are missing, unreadable, empty or do not fit the model.
        TargetUnavailableError: if a requested target, or every target, cannot run the bundle on this machine.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    validate_timeout(timeout)
    original = open_original(opened, unquantized, data, max_kl, seed, progress)
    from funnel_export.report.folder import reports_folder
    from funnel_export.report.pages import keep_report

    folder = reports_folder(opened, reports)
    report = compare(
        opened,
        targets=targets,
        engines=engines,
        lengths=lengths,
        max_length=max_length,
        factor=factor,
        seed=seed,
        timeout=timeout,
        original=original,
        progress=progress,
    )
    progress("report")
    keep_report(opened, PARITY, report, folder)
    return report


def compare(
    opened: Bundle,
    *,
    targets: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    lengths: Sequence[int] = (),
    shapes: Sequence[tuple[int, int]] = (),
    max_length: int | None = None,
    factor: float = FACTOR,
    seed: int = SEED,
    timeout: float = SILENCE,
    original: "Original | None" = None,
    progress: Progress = no_progress,
) -> "ParityReport":
    """Like `check`, but nothing is written.

    `shapes` are numbers of rows and tokens that are compared too, the first ones first, as far as memory allows.
    """
    validate_numbers(lengths, max_length, factor)
    positions = opened.architecture.max_position_embeddings
    if max(lengths, default=1) > positions:
        raise SpecError(
            "length exceeds max_position_embeddings",
            got=f"length {max(lengths)}",
            wanted=f"at most {positions} tokens",
        )
    chosen = list(candidates(opened, targets, engines, timeout))
    if not chosen:
        raise TargetUnavailableError(
            f"no target on this machine runs a {opened.spec.dtype} graph or one of the bundle's engines",
            got=f"engines: {', '.join(engine_names(opened)) or 'none'}",
            hint="funnel-export doctor; or export with --dtype float32",
        )
    from funnel_export.verify.cases import LONG, plan_cases, with_profiles, with_shapes
    from funnel_export.verify.parity import check_memory, check_parity, fits_memory

    profiles = [profile for each in chosen for profile in each.profiles]
    longest = min(max_length or positions, positions)
    tuned = {min(profile.axes[SEQUENCE].opt, positions) for profile in profiles}
    long = [min(LONG, positions)] if opened.spec.task.has_past else []
    windows = opened.family.windows(opened.architecture)
    plan = plan_cases(opened.spec.funnel, windows, [*lengths, *tuned, *long], longest)
    if not opened.spec.task.has_past:
        plan = with_profiles(plan, profiles, longest)
    check_memory(opened, plan)
    plan = with_shapes(plan, shapes, partial(fits_memory, opened), longest)
    return check_parity(opened, chosen, plan, factor=factor, seed=seed, original=original, progress=progress)


def validate_numbers(lengths: Sequence[int], max_length: int | None, factor: float = FACTOR) -> None:
    """Raise `SpecError` for invalid numbers."""
    for name, value in (("length", min(lengths, default=1)), ("max_length", 1 if max_length is None else max_length)):
        if value < 1:
            raise SpecError(f"invalid {name}", got=value, wanted=f"{name} >= 1")
    if not 1 <= factor < float("inf"):
        raise SpecError("factor must be at least 1", got=factor, wanted="1 <= factor < inf")
