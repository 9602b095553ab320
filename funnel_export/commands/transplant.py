"""`transplant`: an adapted checkpoint with the instruction tuning of its base model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from funnel_export.checkpoint.checkpoint import SINGLE, Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint
from funnel_export.checkpoint.same_model import Weight, find_weights, has_maps
from funnel_export.checkpoint.task_vector import write_sums
from funnel_export.checkpoint.vocabulary import check_vocabularies
from funnel_export.checkpoint.written import write_config, write_index
from funnel_export.errors import CheckpointError
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.choices import Recovery
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.atomic import check_place, replace_folder

if TYPE_CHECKING:
    from funnel_export.quality.transplant_report import TransplantReport

REPORT = "transplant.json"
"""File of the report in the new checkpoint."""


def transplant(
    adapted: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    instruct: str | os.PathLike[str],
    progress: Progress = no_progress,
) -> "TransplantReport":
    """Write a checkpoint whose weights are adapted + (instruct - base): an instruct model with a funnel.

    All three are checkpoints of the same model. Maps of recovery `linear`, weight files and dtypes are those of the
    adapted checkpoint. Config, tokenizer, chat template and generation config are those of the instruct model, with the
    funnel of the adapted one. The new checkpoint has a report, `transplant.json`.

    Each is a folder, or the id of a model on the Hugging Face Hub.

    Args:
        adapted: the checkpoint that was adapted or fitted to a funnel; the funnel is in its config.
        out: folder of the new checkpoint; missing or empty.
        base: the dense model from which `adapted` was made.
        instruct: the instruction-tuned model of the same base model.
        progress: called with the name of each step.

    Raises:
        CheckpointError: if a checkpoint cannot be used, or the three do not fit each other.
        SpecError: for a funnel that does not fit the model.
        BundleError: if `out` is not empty or cannot be written.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100 - links stay
    check_place(target, _never)
    found = [find_checkpoint(each) for each in (adapted, base, instruct)]
    source, dense, tuned = (Checkpoint.open(each.folder) for each in found)
    spec = _funnel(source)
    _check_dense("base", dense)
    _check_dense("instruct", tuned)
    weights = find_weights(source, dense, tuned)
    _check_heads(source, dense, tuned)
    check_vocabularies(dense, tuned)
    companions = tuned.companions()

    from funnel_export.quality.distances import check_distances, measure_distances
    from funnel_export.quality.transplant_report import TransplantReport

    distances = measure_distances(weights, progress)
    check_distances(distances)
    report = TransplantReport(
        adapted=found[0].name,
        base=found[1].name,
        instruct=found[2].name,
        funnel=spec.to_dict(),
        weights=len(weights),
        copied=len(source.tensors) - len(weights),
        adapted_from_base=distances.adapted,
        instruct_from_base=distances.instruct,
    )
    with replace_folder(target, _never) as folder:
        _write_weights(folder, source, weights, progress)
        # Hugging Face loads weights in the dtype that the config names.
        dtype = {key: str(source.dtype) for key in ("dtype", "torch_dtype") if key in tuned.config}
        write_config(folder, tuned.config | dtype, spec)
        for name, content in companions.items():
            (folder / name).write_bytes(content)
        (folder / REPORT).write_text(json.dumps(report.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    return report


def _never(_: Path) -> bool:
    """Whether a folder with content may be replaced: a checkpoint may not."""
    return False


def _funnel(adapted: Checkpoint) -> FunnelSpec:
    """The funnel of the adapted checkpoint; raises `CheckpointError` if it has none, or lacks the maps of it."""
    spec = adapted.funnel
    if spec is None:
        raise CheckpointError(
            "the adapted checkpoint has no funnel",
            got=f"no funnel in config.json of {adapted.path}",
            wanted="a checkpoint that was adapted or fitted to a funnel",
            hint=f"funnel-export fit {adapted.path} FITTED --funnel P:R:S --data TEXTS",
        )
    spec.validate(adapted.architecture.num_hidden_layers)
    if spec.recovery is Recovery.LINEAR and not has_maps(adapted):
        raise CheckpointError(
            "the adapted checkpoint has no maps for its recovery",
            got=f"recovery {spec.recovery} in config.json of {adapted.path}, and no maps among its weights",
            wanted="a checkpoint with fitted maps",
        )
    return spec


def _check_dense(role: str, checkpoint: Checkpoint) -> None:
    spec = checkpoint.funnel
    if spec is not None:
        raise CheckpointError(
            f"the {role} model has a funnel",
            got=f"funnel {spec} in config.json of {checkpoint.path}",
            wanted="a dense model; only the adapted checkpoint has a funnel",
        )


def _check_heads(*checkpoints: Checkpoint) -> None:
    """Refuse a tied head that is stored with other values than the embedding."""
    from funnel_export.exporter.weights import check_head

    for each in checkpoints:
        check_head(each)


def _write_weights(folder: Path, source: Checkpoint, weights: Mapping[str, Weight], progress: Progress) -> None:
    """Write the weight files, with the names of those of the adapted checkpoint, and an index if there are several."""
    total, done = sum(tensor.nbytes for tensor in source.tensors.values()), 0
    progress("writing the weights", 0.0)
    for file in source.weights:
        for size in write_sums(folder / file.file, file, source.path / file.file, weights):
            done += size
            progress("writing the weights", done / max(total, 1))
    if [file.file for file in source.weights] != [SINGLE]:
        write_index(folder, {file.file: file.tensors for file in source.weights})
