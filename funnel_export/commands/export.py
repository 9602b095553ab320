"""`export`: from a checkpoint to a bundle."""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.bundle.manifest import ENGINES, MANIFEST
from funnel_export.bundle.replace import changed_files, foreign_entry, reports_of, take_engines
from funnel_export.checkpoint.checkpoint import CONFIG, Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint, is_here
from funnel_export.errors import BundleError, FunnelExportWarning, SpecError
from funnel_export.progress import Progress, no_progress
from funnel_export.report.files import REPORT_FILES
from funnel_export.spec.choices import AUTO, Dtype, Logits, Task, parse_choice
from funnel_export.spec.defaults import EXPORT_WEIGHTS
from funnel_export.spec.export import DEFAULT_LOGITS, DEFAULT_OPSET, ExportSpec, validate_opset
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.atomic import check_place, replace_folder
from funnel_export.system.place import Placing, copied_bytes
from funnel_export.system.room import check_room


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    funnel: FunnelSpec | str | None = AUTO,
    task: Task | str = AUTO,
    dtype: Dtype | str = AUTO,
    logits: Logits | str = DEFAULT_LOGITS,
    weights: Placing | str = EXPORT_WEIGHTS,
    opset: int = DEFAULT_OPSET,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Export a checkpoint to a bundle, without loading its weights.

    Args:
        checkpoint: folder with `config.json` and safetensors, or the id of a model on the Hugging Face Hub.
        out: the bundle's folder; a bundle that is there already is replaced once the new one is whole. Its engines stay
            if they were compiled from the same graph and weights.
        funnel: a `FunnelSpec`, `"P:R:S"`, `None` or `"none"` for the dense model; by default the funnel that the
            checkpoint's config carries.
        task: `feature-extraction`, `text-generation`, `text-classification`, `token-classification`; `auto` reads the
            checkpoint's architectures.
        dtype: what the graph computes in, whatever the checkpoint stores: `float32`, `float16`, `bfloat16`; `auto` is
            the dtype in which the checkpoint stores its embedding.
        logits: of text generation, for which tokens there are logits: `all`, or each row's `last`, which gives
            [batch, 1, vocabulary]: what comes after a prompt depends on no others.
        weights: `link` hard-links the checkpoint's files where it can, `copy` copies them.
        opset: ONNX opset, 18 to 22.
        revision: branch, tag or commit of a Hub id; by default `main`.
        overwrite: whether an earlier bundle's reports, other engines, and files that were changed may be removed.
        progress: called with the name of each step.

    Returns:
        The verified bundle.

    Raises:
        SpecError: for invalid options or an invalid funnel.
        CheckpointError: for a checkpoint that cannot be exported.
        BundleError: if `out` holds something else, or what only `overwrite` removes, or cannot be written, or if there
            is no room.
        ExportError: if the graph fails its audit.
    """
    asked_task = None if task == AUTO else parse_choice("task", Task, task)
    asked_dtype = None if dtype == AUTO else parse_choice("dtype", Dtype, dtype)
    placing, kept = parse_choice("weights", Placing, weights), parse_choice("logits", Logits, logits)
    validate_opset(opset)
    target = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that we refuse to replace
    may_replace = partial(_may_replace, overwrite=overwrite)
    if not is_here(checkpoint):
        progress("looking for the model on the Hub")
        check_place(target, may_replace, seal=MANIFEST)  # not after a download only
    found = find_checkpoint(checkpoint, revision)
    _check_not_the_checkpoint(found.folder, target)
    check_place(target, may_replace, seal=MANIFEST)
    progress("reading the checkpoint")
    source = Checkpoint.open(found.folder)
    spec = ExportSpec(
        task=asked_task or source.task,
        dtype=asked_dtype or source.dtype,
        funnel=_funnel(source, funnel),
        opset=opset,
        logits=kept,
    )
    if spec.funnel is not None:
        spec.funnel.validate(source.architecture.num_hidden_layers)
    if spec.dtype is Dtype.FLOAT16:
        message = f"{source.family.title} is known to overflow in float16; bfloat16 is the safe choice"
        warnings.warn(message, FunnelExportWarning, stacklevel=2)

    source.companions()  # what cannot be copied is said before the seconds that tracing takes
    name = os.fsencode(found.name).decode("utf-8", "backslashreplace")  # file names may be no text
    with _collector_paused(), replace_folder(target, may_replace, seal=MANIFEST) as folder:
        bundle = _build_and_write(source, folder, spec, name, placing, progress)
        gone = take_engines(target, bundle)
        lost = [*changed_files(target, bundle), *(f"{ENGINES}/{engine}" for engine in gone)]
        if lost and not overwrite:
            _refuse_to_remove(lost, target)
    if gone:
        message = (
            f"engines of the bundle that was replaced are removed, since graph or weights changed: {', '.join(gone)}"
        )
        warnings.warn(f"{message}; compile again", FunnelExportWarning, stacklevel=2)
    return replace(bundle, path=target)


def _build_and_write(
    source: Checkpoint, folder: Path, spec: ExportSpec, name: str, placing: Placing, progress: Progress
) -> Bundle:
    from funnel_export.exporter import audit, build, write

    weights = [source.path / file.file for file in source.weights]
    check_room(folder, copied_bytes(weights, folder, placing), "the weight files that are copied")
    progress("tracing")
    graphs = build.build_graphs(source, spec)
    progress("auditing the graph")
    audit.audit(graphs, source.family, source.architecture, spec)
    progress("writing the bundle")
    write.write_bundle(folder, graphs, source, spec, source=name, placing=placing)
    return load_bundle(folder)


def _may_replace(folder: Path, *, overwrite: bool) -> bool:
    foreign = foreign_entry(folder, REPORT_FILES)
    if foreign not in (None, folder):
        raise BundleError(
            "the bundle's folder holds something else, which is left as it is",
            got=foreign,
            wanted="nothing but what was exported, compiled and reported",
            hint="move it, or export to another name",
        )
    reports = reports_of(folder)
    if foreign is None and reports and not overwrite:
        _refuse_to_remove(reports, folder)
    return foreign is None


def _refuse_to_remove(entries: Sequence[str], bundle: Path) -> NoReturn:
    raise BundleError(
        "the export would remove what was added to the earlier bundle, or changed in it",
        got=f"{', '.join(entries)} in {bundle}",
        wanted="a bundle as it was exported, perhaps with engines that fit the new graph and weights",
        hint="--overwrite to remove them (overwrite=True in Python), or another name",
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking through torch and the trace again and again, for some memory."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _funnel(source: Checkpoint, funnel: FunnelSpec | str | None) -> FunnelSpec | None:
    if funnel is None or funnel == "none":
        return None
    if funnel == AUTO:
        if source.funnel is None:
            raise SpecError(
                "no funnel was named, and the checkpoint carries none",
                got=f'no "funnel" in {source.path / CONFIG}',
                wanted="P:R:S, or none for the dense model",
                hint=_suggestion(source.architecture.num_hidden_layers),
            )
        return source.funnel
    return FunnelSpec.parse(funnel) if isinstance(funnel, str) else funnel


def _check_not_the_checkpoint(checkpoint: Path, target: Path) -> None:
    """Refuse to replace a folder in which the checkpoint, or a file that it links to, lies."""
    if not target.exists() or not os.access(checkpoint, os.R_OK) or not checkpoint.is_dir():
        return  # of the checkpoint, `Checkpoint.open` says what is wrong
    for path in (checkpoint, *checkpoint.iterdir()):
        real = path.resolve()
        if any(place.exists() and place.samefile(target) for place in (real, *real.parents)):
            raise BundleError(
                "the output would take the place of the checkpoint, which is left as it is",
                got=f"{target}, in which {real} lies",
                wanted="a folder that holds nothing of the checkpoint",
                hint=f"{target}-exported",
            )


def _suggestion(layers: int) -> str:
    """A funnel to begin with: half of the layers, in the middle, at half the length."""
    return f"--funnel {layers // 4}:{layers // 4 + layers // 2}:2"
