"""Opens what a quantized bundle was made from, to compare the two."""

import os
from typing import TYPE_CHECKING

from funnel_export.bundle.load import Bundle
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint
from funnel_export.commands.evaluate import read_rows
from funnel_export.commands.export import check_not_quantized
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.choices import Dtype
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import SEED
from funnel_export.spec.export import ExportSpec

if TYPE_CHECKING:
    from funnel_export.quality.source import Source
    from funnel_export.verify.quantization_cost import Original
    from funnel_export.verify.quantization_report import TextCost

TIED = "tie_word_embeddings"
"""The only fact of `config.json` that `quantize` changes."""


def open_original(
    bundle: Bundle,
    unquantized: str | os.PathLike[str] | None,
    data: DataSpec | Places | None,
    max_kl: float,
    seed: int = SEED,
    progress: Progress = no_progress,
) -> "Original | None":
    """The original weights of a quantized bundle, and what quantization costs on documents; the arguments of `check`.

    Returns:
        None without `unquantized`.

    Raises:
        SpecError: if the bundle is not quantized, for documents without `unquantized`, or an invalid limit.
        CheckpointError: if it cannot be opened, is another model, or is quantized too.
        DataError: if documents are missing, unreadable, empty or do not fit the model.
    """
    if unquantized is None:
        if data is not None:
            raise SpecError("documents without the unquantized model", got="data", wanted="unquantized with data")
        return None
    if bundle.spec.quantization is None:
        raise SpecError(
            "the bundle is not quantized, so there is nothing to compare with the unquantized model",
            got=bundle.path,
            wanted="a bundle that `quantize` or `export --bits` wrote",
        )
    if not 0 < max_kl < float("inf"):
        raise SpecError("invalid limit of the KL divergence", got=max_kl, wanted="a positive, finite number of nats")
    found = find_checkpoint(os.fspath(unquantized))
    checkpoint = Checkpoint.open(found.folder)
    check_not_quantized(checkpoint)
    _check_same_model(bundle, checkpoint)
    from funnel_export.verify.quantization_cost import Original

    text = None if data is None else _cost_on_documents(bundle, checkpoint, DataSpec.of(data), seed, progress)
    return Original(found.name, checkpoint, max_kl, text)


def _check_same_model(bundle: Bundle, original: Checkpoint) -> None:
    """Raise `CheckpointError` unless both have the same family and architecture."""
    mine, theirs = bundle.architecture.facts(), original.architecture.facts()
    names = sorted(name for name in mine.keys() | theirs.keys() if name != TIED and mine.get(name) != theirs.get(name))
    differing = [f"{name}: {mine.get(name)} and {theirs.get(name)}" for name in names[:5]]
    if bundle.family is not original.family:
        differing.insert(0, f"{bundle.family.title} and {original.family.title}")
    if differing:
        raise CheckpointError(
            "the unquantized model is not the one that was quantized",
            got="; ".join(differing),
            wanted="the same architecture",
            hint="name the bundle or checkpoint that was quantized",
        )


def _cost_on_documents(
    bundle: Bundle, original: Checkpoint, data: DataSpec, seed: int, progress: Progress
) -> "TextCost":
    """What quantization costs on documents, with both models in PyTorch."""
    from funnel_export.quality.source import Source, check_predicts
    from funnel_export.quality.tables import check_places

    check_places(data)
    task = check_predicts(bundle.spec.task.single_pass)
    spec = ExportSpec(task=task, dtype=Dtype.FLOAT32, funnel=bundle.spec.funnel)
    progress("reading the data")
    quantized = Source(str(bundle.path), Checkpoint.open(bundle.path), spec)
    other = Source(str(original.path), original, spec)
    return _compare(quantized, other, data, seed, progress)


def _compare(quantized: "Source", original: "Source", data: DataSpec, seed: int, progress: Progress) -> "TextCost":
    from funnel_export.quality.labels import Labels
    from funnel_export.quality.measures import Measuring
    from funnel_export.quality.scores import score
    from funnel_export.verify.quantization_report import TextCost

    architecture, task = quantized.checkpoint.architecture, quantized.spec.task
    rows = read_rows(quantized, data)
    scorers = [
        each.load(dense=False, dtype=each.spec.dtype, device="cpu", progress=progress)[0]
        for each in (quantized, original)
    ]
    found = score(rows, *scorers, architecture=architecture, batch_size=None, columns=None, progress=progress)
    progress("intervals")
    measuring = Measuring(rows=rows, task=task, labels=Labels.of(architecture), seed=seed)
    distance = measuring.of_distance(found)
    assert distance is not None
    assert found.dense is not None
    return TextCost(
        documents=len(rows.document_bytes),
        scored=len(rows.targets),
        original_loss=measuring.of_model(found.dense).loss.value,
        loss=distance.loss.value,
        loss_low=distance.loss.low,
        loss_high=distance.loss.high,
        kl=distance.kl.value,
        top1=distance.top1.value,
    )
