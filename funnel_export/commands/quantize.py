"""`quantize`: a bundle with its weights in fewer bits."""

import os
from dataclasses import replace
from pathlib import Path

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.commands.calibrating import chosen_texts
from funnel_export.commands.export import check_not_quantized, check_target, export_opened
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import EXPORT_WEIGHTS
from funnel_export.spec.quantization import QUANTIZED_OPSET, Quantization


def quantize(
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    quantization: Quantization,
    *,
    data: DataSpec | Places | None = None,
    tokens: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Bundle:
    """Write a bundle again with quantized weights; task, funnel, dtype and tokenizer stay.

    The graphs are built anew, and read each weight as (code - zero point) * scale. Weights are read and rounded one
    after the other, so memory depends on the largest one, unless the method reads texts.

    Args:
        bundle: the bundle; it is not changed.
        out: folder of the new bundle; see `export`.
        quantization: in how many bits, and by which method.
        data: texts for method `gptq`; see `evaluate`. The model is loaded and reads them.
        tokens: most tokens of them that are used, by default 4096.
        overwrite: see `export`.
        progress: called with the name of each step.

    Returns:
        The verified new bundle.

    Raises:
        SpecError: for texts without a method that reads them, the other way round, or if its package is missing.
        DataError: for texts that cannot be used.
        BundleError: if the bundle is damaged, or `out` holds something else or cannot be written.
        CheckpointError: if the weights are quantized already, infinite, or not numbers.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link, which must be refused
    texts = chosen_texts(quantization, data, tokens)
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    check_target(opened.path, target, overwrite=overwrite)
    source = Checkpoint.open(opened.path)
    quantization.check_chosen()
    check_not_quantized(source)
    return export_opened(
        source,
        target,
        replace(opened.spec, quantization=quantization, opset=max(opened.spec.opset, QUANTIZED_OPSET)),
        name=opened.manifest.source,
        placing=EXPORT_WEIGHTS,
        overwrite=overwrite,
        progress=progress,
        texts=texts,
    )
