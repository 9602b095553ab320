"""`fit`: a checkpoint whose recovery is fitted to a funnel, or to dropped layers."""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.fitted import files_without_maps, write_fitted
from funnel_export.checkpoint.hub import find_checkpoint
from funnel_export.errors import DataError
from funnel_export.progress import Progress, no_progress
from funnel_export.quality.tables import check_places
from funnel_export.spec.choices import Dtype, Recovery, parse_choice
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import EXPORT_WEIGHTS, FIT_DTYPE, FIT_LENGTH, FIT_TOKENS, SEED
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.atomic import check_place, replace_folder
from funnel_export.system.place import Placing

if TYPE_CHECKING:
    from funnel_export.funnel.maps import DropMap, SlotMaps
    from funnel_export.quality.fit_report import FitReport, Losses
    from funnel_export.quality.rows import TokenRows

REPORT = "fit.json"
"""File of the report in the fitted checkpoint."""
HELD_OUT = 5
"""One of this number of documents is held out; if there are fewer documents, one of this number of rows."""


def fit(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    funnel: FunnelSpec | str,
    data: DataSpec | Places,
    tokens: int = FIT_TOKENS,
    length: int = FIT_LENGTH,
    dtype: Dtype | str = FIT_DTYPE,
    seed: int = SEED,
    weights: Placing | str = EXPORT_WEIGHTS,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> "FitReport":
    """Fit the maps of recovery `linear` in closed form, and write a checkpoint that has them.

    The maps bring the hidden states after the funnel near to those of the dense model
    (`funnel_export.quality.fitting`). The other weights stay as they are. The new checkpoint has the funnel in its
    config, so that `export` uses it, and a report, `fit.json`. The same texts and seed give the same files.

    Args:
        checkpoint: folder of the dense checkpoint, or the id of a model on the Hugging Face Hub.
        out: folder of the new checkpoint; missing or empty.
        funnel: the funnel; its recovery becomes `linear`.
        data: texts to fit to; see `evaluate`.
        tokens: most tokens that are used, held-out ones included.
        length: most tokens of a row.
        dtype: dtype in which PyTorch runs the model.
        seed: seed of the order in which documents are used, of the first 10,000.
        weights: `link` hard-links the checkpoint's weight files if possible, `copy` copies them.
        revision: branch, tag or commit of a model on the Hub.
        progress: called with the name of each step.

    Raises:
        SpecError: for invalid options or a funnel that does not fit the model.
        CheckpointError: for a checkpoint that cannot be used.
        DataError: for data that cannot be used, or too little of it.
        BundleError: if `out` is not empty or cannot be written.
    """
    placing, target = parse_choice("weights", Placing, weights), Path(os.path.abspath(out))  # noqa: PTH100 - links stay
    check_place(target, _never)
    found = find_checkpoint(checkpoint, revision)
    source = Checkpoint.open(found.folder)
    documents = DataSpec.of(data)
    check_places(documents)
    spec = replace(FunnelSpec.parse(funnel) if isinstance(funnel, str) else funnel, recovery=Recovery.LINEAR)
    spec.validate(source.architecture.num_hidden_layers)
    spec.validate_task(source.task)
    plain = ExportSpec(task=source.task, dtype=parse_choice("dtype", Dtype, dtype))
    source.companions()  # fail before the work if files cannot be copied, or maps not be replaced
    files_without_maps(source)
    rows = _rows(source, documents, tokens, length, seed)

    import torch

    from funnel_export.quality.fit_report import FitReport
    from funnel_export.quality.fitting import fit_maps
    from funnel_export.verify.reference import load_checkpoint

    fitted_to, held_out = _split(rows)
    progress("loading the model")
    model = load_checkpoint(source, plain, getattr(torch, plain.dtype))
    progress("reading texts")
    maps, how = fit_maps(model, spec, *([row.tokens.tolist() for row in part.rows] for part in (fitted_to, held_out)))
    progress("measuring the loss")
    report = FitReport(
        checkpoint=found.name,
        funnel=spec.to_dict(),
        rows_sha256=rows.sha256,
        tokens=sum(len(row.tokens) for row in fitted_to.rows),
        held_out=sum(len(row.tokens) for row in held_out.rows),
        length=length,
        dtype=plain.dtype,
        maps=how,
        losses=_losses(model, spec, maps, held_out, source) if source.task.generates else None,
    )
    progress("writing the checkpoint")
    stored = getattr(torch, source.dtype)
    with replace_folder(target, _never) as folder:
        write_fitted(folder, source, spec, {name: each.to(stored) for name, each in maps.state_dict().items()}, placing)
        (folder / REPORT).write_text(json.dumps(report.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    return report


def _never(_: Path) -> bool:
    """Whether a folder with content may be replaced: a checkpoint may not."""
    return False


def _rows(source: Checkpoint, data: DataSpec, tokens: int, length: int, seed: int) -> "TokenRows":
    """The texts as rows of tokens."""
    from funnel_export.quality.shuffled import shuffled_rows

    rows = shuffled_rows(source, data, tokens=tokens, length=length, seed=seed)
    if len(rows.rows) < 2:
        raise DataError(
            "there is too little text to fit to",
            got=f"{len(rows.rows)} row of at most {length} tokens",
            wanted="several rows, of which some are held out",
            hint="more texts, or a smaller --length",
        )
    return rows


def _split(rows: "TokenRows") -> tuple["TokenRows", "TokenRows"]:
    """The rows to fit to, and those that are held out: whole documents, if there are enough of them."""
    by_document = len(rows.document_bytes) >= HELD_OUT
    step = HELD_OUT if by_document or len(rows.rows) >= HELD_OUT else 2
    numbers = [row.document if by_document else index for index, row in enumerate(rows.rows)]
    parts = []
    for wanted in (False, True):
        kept = [row for row, n in zip(rows.rows, numbers, strict=True) if (n % step == step - 1) == wanted]
        parts.append(replace(rows, rows=kept))
    return parts[0], parts[1]


def _losses(
    model: Any, spec: FunnelSpec, maps: "SlotMaps | DropMap", rows: "TokenRows", source: Checkpoint
) -> "Losses":
    """The losses of the dense model, of the funnel with new maps, and with fitted ones, on some rows."""
    import torch

    from funnel_export.funnel import patch_forward
    from funnel_export.quality.fit_report import Losses
    from funnel_export.quality.scorers import InPyTorch, with_same_weights
    from funnel_export.quality.scores import score

    means = []
    for each, with_funnel in ((None, False), (None, True), (maps, True)):
        copy = with_same_weights(model)
        if with_funnel:
            patch_forward(copy, spec, maps=each)
        with contextlib.closing(InPyTorch(copy, torch.device("cpu"))) as scorer:
            found = score(rows, scorer, None, architecture=source.architecture, progress=no_progress)
        means.append(float(found.model.nats.mean()))
    return Losses(dense=means[0], before=means[1], fitted=means[2])
