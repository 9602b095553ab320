"""`export`: export a checkpoint to a bundle."""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.bundle.manifest import ENGINES, MANIFEST
from funnel_export.bundle.replace import changed_files, foreign_entry, reports_of, take_engines
from funnel_export.bundle.weights import DerivedFile
from funnel_export.checkpoint.checkpoint import CONFIG, Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint, is_here
from funnel_export.checkpoint.modules import read_modules
from funnel_export.commands.calibrating import CalibrationTexts, chosen_texts
from funnel_export.errors import BundleError, CheckpointError, FunnelExportWarning, SpecError
from funnel_export.progress import Progress, no_progress
from funnel_export.report.files import REPORT_FILES
from funnel_export.spec.choices import AUTO, Dtype, Logits, Task, parse_choice
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import EXPORT_WEIGHTS
from funnel_export.spec.export import DEFAULT_LOGITS, DEFAULT_OPSET, ExportSpec, validate_opset
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.quantization import QUANTIZED_OPSET, Quantization
from funnel_export.system.atomic import check_place, replace_folder
from funnel_export.system.place import Placing, copied_bytes
from funnel_export.system.room import check_room

if TYPE_CHECKING:
    from funnel_export.quantization.write import Solver


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    funnel: FunnelSpec | str | None = AUTO,
    task: Task | str = AUTO,
    dtype: Dtype | str = AUTO,
    logits: Logits | str = DEFAULT_LOGITS,
    quantization: Quantization | None = None,
    data: DataSpec | Places | None = None,
    tokens: int | None = None,
    weights: Placing | str = EXPORT_WEIGHTS,
    opset: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Export a checkpoint to a bundle, without loading its weights.

    A checkpoint that GPTQ, AWQ or compressed-tensors quantized keeps its codes; they are stored in another order.

    Args:
        checkpoint: folder with `config.json` and safetensors, or the id of a model on the Hugging Face Hub.
        out: the bundle's folder; an earlier bundle is replaced when the new one is complete. Engines that were compiled
            from the same graph and weights are kept.
        funnel: a `FunnelSpec`, `"P:R:S"`, `None` or `"none"` for the dense model; by default the funnel in the
            checkpoint's config.
        task: `feature-extraction`, `text-generation` (a single pass over whole texts), `text-generation-with-past`,
            `text-classification`, `token-classification`; `auto` reads it from `architectures` in the checkpoint's
            config. For a causal language model that is `text-generation-with-past`, or `text-generation` with `logits`
            `last`. Feature extraction also copies the modules of sentence-transformers.
        dtype: dtype in which the graph computes: `float32`, `float16`, `bfloat16`; `auto` is the dtype in which the
            checkpoint stores its embedding.
        logits: for text generation, the tokens that get logits: `all`, or `last` for each row's last token only,
            [batch, 1, vocabulary].
        quantization: in how many bits weights are stored; by default as in the checkpoint. The bundle then has weights
            of its own, and `weights` has no effect.
        data: texts for a quantization that is calibrated; see `quantize`.
        tokens: most tokens of them that are used.
        weights: `link` hard-links the checkpoint's files if possible, `copy` copies them; `auto` links only files that
            already have several hard links.
        opset: ONNX opset, 18 to 22; by default 20, and 21 for quantized weights.
        revision: branch, tag or commit of a model on the Hub; by default `main`.
        overwrite: whether to remove an earlier bundle's reports, engines of other weights or graphs, and changed files.
        progress: called with the name of each step.

    Returns:
        The verified bundle.

    Raises:
        SpecError: for invalid options or an invalid funnel.
        DataError: for texts that cannot be used.
        CheckpointError: for a checkpoint that cannot be exported.
        BundleError: if `out` holds something else or cannot be written, if `overwrite` is needed, or if the disk is
            full.
        ExportError: if the graph fails its audit.
    """
    asked_task = None if task == AUTO else parse_choice("task", Task, task)
    asked_dtype = None if dtype == AUTO else parse_choice("dtype", Dtype, dtype)
    placing, kept = parse_choice("weights", Placing, weights), parse_choice("logits", Logits, logits)
    if opset is not None:
        validate_opset(opset)
    texts = chosen_texts(quantization, data, tokens)
    target = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link, which must be refused
    if not is_here(checkpoint):
        progress("looking for the model on the Hub")
        check_target(None, target, overwrite=overwrite)  # fail before a download
    found = find_checkpoint(checkpoint, revision)
    check_target(found.folder, target, overwrite=overwrite)
    progress("reading the checkpoint")
    source = Checkpoint.open(found.folder, foreign=True)
    if quantization is not None:
        quantization.check_chosen()
        check_not_quantized(source)
    stored_as = quantization or source.quantization
    spec = ExportSpec(
        task=asked_task or _task(source, kept),
        dtype=asked_dtype or source.dtype,
        funnel=_funnel(source, funnel),
        opset=opset or (DEFAULT_OPSET if stored_as is None else max(DEFAULT_OPSET, QUANTIZED_OPSET)),
        logits=kept,
        quantization=stored_as,
    )
    if spec.funnel is not None:
        spec.funnel.validate(source.architecture.num_hidden_layers)
        spec.funnel.validate_maps(source.funnel)
    if spec.dtype is Dtype.FLOAT16:
        message = (
            f"{source.family.title} is known to overflow in float16; bfloat16 is the safe choice, "
            "and funnel-export check shows whether this model overflows"
        )
        warnings.warn(message, FunnelExportWarning, stacklevel=2)

    return export_opened(
        source, target, spec, name=found.name, placing=placing, overwrite=overwrite, progress=progress, texts=texts
    )


def export_opened(
    source: Checkpoint,
    target: Path,
    spec: ExportSpec,
    *,
    name: str,
    placing: Placing,
    overwrite: bool,
    progress: Progress,
    texts: CalibrationTexts | None = None,
) -> Bundle:
    """Export an opened checkpoint; see `export`.

    Args:
        source: the checkpoint.
        target: the bundle's folder, an absolute path.
        spec: what the graphs compute.
        name: name of the checkpoint, for the manifest.
        placing: whether to link or copy weight files.
        overwrite: see `export`.
        progress: called with the name of each step.
        texts: for a quantization that is calibrated.
    """
    source.companions()  # fail before tracing if files cannot be copied
    read_modules(source.path, spec.task)
    name = os.fsencode(name).decode("utf-8", "backslashreplace")  # file names may be invalid UTF-8
    may_replace = partial(_may_replace, overwrite=overwrite)
    solver = None if texts is None else texts.calibration(source, spec, progress)
    with _collector_paused(), replace_folder(target, may_replace, seal=MANIFEST) as folder:
        bundle = _build_and_write(source, folder, spec, name, placing, progress, solver)
        gone = take_engines(target, bundle)
        lost = [*changed_files(target, bundle), *(f"{ENGINES}/{engine}" for engine in gone)]
        if lost and not overwrite:
            _refuse_to_remove(lost, target)
    if gone:
        message = f"removed engines of the earlier bundle, since the graph or the weights changed: {', '.join(gone)}"
        warnings.warn(f"{message}; compile again", FunnelExportWarning, stacklevel=2)
    return replace(bundle, path=target)


def _build_and_write(
    source: Checkpoint,
    folder: Path,
    spec: ExportSpec,
    name: str,
    placing: Placing,
    progress: Progress,
    solver: "Solver | None",
) -> Bundle:
    from funnel_export.exporter import audit, build, write

    derived = None
    if spec.quantization is not None and (source.layout is not None or source.quantization is None):
        source, derived = _quantize(source, build.parameters_of(source, spec), folder, spec, progress, solver)
    else:
        weights = [source.path / file.file for file in source.weights]
        check_room(folder, copied_bytes(weights, folder, placing), "the weight files that are copied")
    progress("tracing")
    graphs = build.build_graphs(source, spec, derived)
    progress("auditing the graph")
    audit.audit(graphs, source.family, source.architecture, spec)
    progress("writing the bundle")
    write.write_bundle(folder, graphs, source, spec, source=name, placing=placing)
    return load_bundle(folder)


def _quantize(
    source: Checkpoint,
    parameters: Sequence[str],
    folder: Path,
    spec: ExportSpec,
    progress: Progress,
    solver: "Solver | None",
) -> tuple[Checkpoint, DerivedFile]:
    """Write weights that are rounded to codes, or those that others quantized in the form of a bundle."""
    from funnel_export.quantization.convert import convert_weights, converted_size
    from funnel_export.quantization.write import quantize_weights, quantized_size

    size = quantized_size if source.layout is None else converted_size
    check_room(folder, size(source, parameters, spec), "the quantized weights")
    try:
        if source.layout is not None:
            return convert_weights(source, parameters, spec, folder, progress)
        return quantize_weights(source, parameters, spec, folder, progress, solver)
    except OSError as err:
        raise BundleError(
            "the quantized weights could not be written", got=err, wanted="disk space and write permission"
        ) from err


def check_not_quantized(source: Checkpoint) -> None:
    """Raise `CheckpointError` if the weights are quantized already."""
    if source.quantization is not None:
        raise CheckpointError(
            "the weights are quantized already",
            got=f"{source.path}: {source.quantization}",
            wanted="weights in float32, float16 or bfloat16",
            hint="quantize the original model",
        )


def check_target(source: Path | None, target: Path, *, overwrite: bool) -> None:
    """Raise `BundleError` if a bundle cannot be written to a folder without losing something, or the source."""
    if source is not None:
        _check_not_the_checkpoint(source, target)
    check_place(target, partial(_may_replace, overwrite=overwrite), seal=MANIFEST)


def _may_replace(folder: Path, *, overwrite: bool) -> bool:
    foreign = foreign_entry(folder, REPORT_FILES)
    if foreign not in (None, folder):
        raise BundleError(
            "the bundle's folder holds something else, and was not changed",
            got=foreign,
            wanted="only files that were exported, compiled or reported",
            hint="move it, or export to another name",
        )
    reports = reports_of(folder)
    if foreign is None and reports and not overwrite:
        _refuse_to_remove(reports, folder)
    return foreign is None


def _refuse_to_remove(entries: Sequence[str], bundle: Path) -> NoReturn:
    raise BundleError(
        "the export would remove reports, engines or changed files of the earlier bundle",
        got=f"{', '.join(entries)} in {bundle}",
        wanted="an earlier bundle without reports, changed files and engines of another graph or other weights",
        hint="--overwrite to remove them (overwrite=True in Python), or export to another name",
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Disable garbage collection during the export: it is slow on the many objects of torch and the trace."""
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
                "no funnel was given, and the checkpoint's config has none",
                got=f'no "funnel" in {source.path / CONFIG}',
                wanted="--funnel P:R:S, or --funnel none for the dense model",
                hint=_suggestion(source.architecture.num_hidden_layers),
            )
        return source.funnel
    return FunnelSpec.parse(funnel) if isinstance(funnel, str) else funnel


def _task(source: Checkpoint, logits: Logits) -> Task:
    """The checkpoint's task; text generation has a cache unless `logits` is an option of single passes."""
    if source.task is Task.TEXT_GENERATION and logits is Logits.ALL:
        return Task.TEXT_GENERATION_WITH_PAST
    return source.task


def _check_not_the_checkpoint(checkpoint: Path, target: Path) -> None:
    """Refuse to replace a folder that contains the checkpoint, or a file that it links to."""
    if not target.exists() or not os.access(checkpoint, os.R_OK) or not checkpoint.is_dir():
        return  # `Checkpoint.open` reports an unreadable checkpoint
    for path in (checkpoint, *checkpoint.iterdir()):
        real = path.resolve()
        if any(place.exists() and place.samefile(target) for place in (real, *real.parents)):
            raise BundleError(
                "the output would replace the checkpoint, which was not changed",
                got=f"{target}, which contains {real}",
                wanted="a folder that contains no file of the checkpoint",
                hint=f"export to {target}-exported",
            )


def _suggestion(layers: int) -> str:
    """A first funnel to try: the middle half of the layers, at half the length."""
    return f"--funnel {layers // 4}:{layers // 4 + layers // 2}:2"
