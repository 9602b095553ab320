"""`evaluate`: how well a model predicts documents, and how far it is from the dense model."""

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.signature import NUM_LOGITS
from funnel_export.errors import BundleError, CheckpointError, SpecError, TargetUnavailableError
from funnel_export.progress import Progress, no_progress
from funnel_export.report.folder import QUALITY, is_report
from funnel_export.spec.choices import AUTO, Device, Dtype, Task, parse_choice
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import EVALUATED_LENGTH, SEED
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.profile import BATCH
from funnel_export.system.atomic import write_text
from funnel_export.system.machine import conditions, peak_bytes
from funnel_export.system.room import no_room

if TYPE_CHECKING:
    from funnel_export.quality.quality_report import QualityReport
    from funnel_export.quality.rows import TokenRows
    from funnel_export.quality.scores import Compared
    from funnel_export.quality.source import Source


def evaluate(
    model: Bundle | str | os.PathLike[str],
    data: DataSpec | Places,
    *,
    funnel: FunnelSpec | str | None = AUTO,
    dtype: Dtype | str = Dtype.FLOAT32,
    target: str | None = None,
    engine: str | None = None,
    dense: bool | None = None,
    against: str | os.PathLike[str] | None = None,
    length: int = EVALUATED_LENGTH,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: Device | str = Device.AUTO,
    seed: int = SEED,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> "QualityReport":
    """Measure a model on documents, beside the dense model of the same weights.

    Language models are measured by the loss at every token, classifiers by their labels; `docs/evaluate.md` describes
    the measures. Data that does not fit is refused before a model is loaded.

    Args:
        model: a checkpoint's folder or Hub id, which runs in PyTorch, or a bundle or its folder, which runs in a
            target.
        data: places of the documents, or a `DataSpec`, which also has splits and names of columns.
        funnel: for a checkpoint, a `FunnelSpec`, `"P:R:S"`, or `None` or `"none"` for the dense model; by default the
            funnel in its config, if it has one. A bundle has its own.
        dtype: dtype of models in PyTorch: the checkpoint, and the dense model that a bundle is compared with.
        target: for a bundle, the name of a target; by default the first that runs it here.
        engine: for a bundle, the name of an engine.
        dense: whether to compare with the dense model; by default if the model has a funnel.
        against: checkpoint of another dense model to compare with, for example the one that training began with; by
            default, the dense model has the same weights.
        length: most tokens of a row, at least 2.
        max_documents: use at most this number of documents, the first ones.
        max_tokens: for language models, use at most this number of tokens, the first ones; the last document may be
            cut.
        batch_size: rows that run together; by default as many as have 512 tokens, or one if an engine has optimization
            profiles.
        device: device of PyTorch: `cpu`, `cuda`, or `auto`, which is a GPU if PyTorch has one.
        seed: seed of the draws of documents for the intervals.
        out: file for the report; an earlier report is replaced.
        progress: called with the name of each step.

    Raises:
        DataError: if documents are missing, unreadable, empty or do not fit the model.
        SpecError: for invalid options, or an `out` that holds something else or cannot be written.
        CheckpointError: if the checkpoint cannot be loaded, has no tokenizer, or is of a task that cannot be evaluated.
        BundleError: likewise for a bundle or an engine; or if the disk is full.
        TargetUnavailableError: if the target does not run the bundle here.
        TargetRefusedError: if the target refuses the graph.
    """
    asked, computing = parse_choice("device", Device, device), parse_choice("dtype", Dtype, dtype)
    documents = DataSpec.of(data)
    if batch_size is not None and batch_size < 1:
        raise SpecError("batch_size must be at least 1", got=batch_size, wanted=">= 1")
    if against is not None and dense is False:
        raise SpecError(
            "a dense model was given, but the comparison with it is turned off",
            got=f"against {against}, and no dense model (--no-dense)",
            wanted="one of the two options",
        )
    place = None if out is None else _checked(Path(out))
    progress("opening the model")
    from funnel_export.quality.source import open_other, open_source
    from funnel_export.quality.tables import check_places

    check_places(documents)
    source = open_source(model, funnel=funnel, dtype=computing, target=target, engine=engine)
    third = None if against is None else open_other(os.fspath(against), source, computing)
    compares = third is None and _compares(source, dense)
    progress("reading the data")
    rows = read_rows(source, documents, length, max_documents, max_tokens)
    from funnel_export.quality.scores import score

    begin = time.monotonic()
    computes = _chosen(asked)
    scorer, other = source.load(dense=compares, dtype=computing, device=computes, progress=progress)
    if third is not None:
        other, _ = third.load(dense=False, dtype=computing, device=computes, progress=progress)
    with contextlib.closing(scorer), contextlib.closing(other) if other else contextlib.nullcontext():
        found = score(
            rows,
            scorer,
            other,
            architecture=source.checkpoint.architecture,
            batch_size=batch_size or (None if source.most(BATCH) is None else 1),
            columns=source.most(NUM_LOGITS),
            progress=progress,
        )
    facts = {
        "against": third and third.name,
        "device": scorer.device,
        "precision": scorer.precision,
        "seconds": time.monotonic() - begin,
    }
    progress("intervals")
    report = _report(source, documents, rows, found, length=length, seed=seed, **facts)
    if place is not None:
        _write(place, report)
    return report


def _checked(out: Path) -> Path:
    """The file for the report, unless it holds something else."""
    if os.path.lexists(out) and not is_report(out, QUALITY):
        raise SpecError(
            "the file for the report is not a report of evaluate; it was left unchanged",
            got=out,
            wanted="a new file, or an earlier report of evaluate",
            hint="--out with another file",
        )
    return out


def _compares(source: "Source", dense: bool | None) -> bool:
    """Whether to compare with the dense model."""
    if dense and source.bundle is None and source.spec.funnel is None:
        raise SpecError(
            "the model is the dense model itself", got=f"dense for {source.name} without a funnel", wanted="a funnel"
        )
    return source.spec.funnel is not None if dense is None else dense


def read_rows(
    source: "Source",
    data: DataSpec,
    length: int = EVALUATED_LENGTH,
    max_documents: int | None = None,
    max_tokens: int | None = None,
) -> "TokenRows":
    """The rows of the documents, for the model's task and tokenizer."""
    from funnel_export.quality.documents import read_documents
    from funnel_export.quality.rows import RowSpec, make_rows
    from funnel_export.runtime.tokenizer import load_tokenizer

    architecture, task = source.checkpoint.architecture, source.spec.task
    spec = RowSpec(task=task, length=length, max_documents=max_documents, max_tokens=max_tokens)
    documents = read_documents(data, task)
    tokenizer = load_tokenizer(source.checkpoint.path, CheckpointError if source.bundle is None else BundleError)
    return make_rows(documents, tokenizer, architecture, spec)


def _chosen(device: Device) -> str:
    """The name of PyTorch's device."""
    import torch

    here = torch.cuda.is_available()
    if device is Device.CUDA and not here:
        raise TargetUnavailableError("PyTorch finds no GPU", got=f"torch {torch.__version__}", hint="--device cpu")
    return str((Device.CUDA if here else Device.CPU) if device is Device.AUTO else device)


def _report(source: "Source", data: DataSpec, rows: "TokenRows", found: "Compared", **facts: Any) -> "QualityReport":
    from funnel_export.quality.labels import Labels
    from funnel_export.quality.measures import Measuring
    from funnel_export.quality.quality_report import QualityReport

    spec, bundle, labels = source.spec, source.bundle, Labels.of(source.checkpoint.architecture)
    measuring = Measuring(rows=rows, task=spec.task, labels=labels, seed=facts["seed"])
    places = spec.task is not Task.TEXT_CLASSIFICATION  # its outputs have no place in the text
    stride = 1 if spec.funnel is None else spec.funnel.stride
    packages = ("torch", "transformers", "funnel-export")
    return QualityReport(
        model=source.name,
        task=spec.task,
        funnel=None if spec.funnel is None else spec.funnel.to_dict(),
        runtime=source.runtime,
        graph_digests={} if bundle is None else {role: graph.sha256 for role, graph in bundle.graphs.items()},
        weights=None if bundle is None else bundle.manifest.weights,
        data=list(data.places),
        rows_sha256=rows.sha256,
        documents=len(rows.document_bytes),
        skipped=rows.skipped,
        cut=rows.cut,
        scored=len(rows.targets),
        size=int(rows.document_bytes.sum()),
        measures=measuring.of_model(found.model),
        dense=None if found.dense is None else measuring.of_model(found.dense),
        distance=measuring.of_distance(found),
        by_phase=measuring.by_phase(found, stride) if places and stride > 1 else [],
        by_position=measuring.by_position(found) if places else [],
        peak_memory_bytes=peak_bytes(),
        conditions=conditions(packages) | source.versions,
        **facts,
    )


def _write(out: Path, report: "QualityReport") -> None:
    try:
        write_text(out, report.model_dump_json(indent=2) + "\n")
    except OSError as err:
        raise no_room(err, out.parent) or SpecError(
            "the report cannot be written", got=err, wanted=f"to create {out}", hint="--out with another file"
        ) from err
