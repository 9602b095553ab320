"""`package`: add a bundle, or engines of it, to a Triton model repository."""

import os
import warnings
from pathlib import Path

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.errors import FunnelExportWarning
from funnel_export.packaging.triton import (
    Package,
    check_unchanged,
    find_engine,
    find_engines,
    is_model,
    model_folder,
    served,
    warn_of_gaps,
    write_generation,
    write_model,
)
from funnel_export.packaging.triton_config import generation_config, model_config, schema
from funnel_export.progress import Progress, no_progress
from funnel_export.runtime.tokenizer import check_tokenizer
from funnel_export.spec.choices import Backend, parse_choice
from funnel_export.spec.defaults import PACKAGE_WEIGHTS
from funnel_export.spec.triton import TritonOptions
from funnel_export.system.atomic import replace_folder
from funnel_export.system.place import Placing

ROUNDING = (
    "Triton's ONNX Runtime back end may round activations to 8 bits if weights are quantized: ONNX Runtime 1.32 does "
    "by default, and the back end has no parameter for it. `check` does not compare such a model"
)
HINT = "use another --name, or an OUT that you may write"


def package(
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: TritonOptions | None = None,
    weights: Placing | str = PACKAGE_WEIGHTS,
    progress: Progress = no_progress,
) -> Package:
    """Add a bundle's graph, or one of its engines, to a Triton model repository.

    A bundle of the task text-generation-with-past becomes a model of the Python back end, with all its graphs or with
    engines of them. Its server needs this package.

    The folder `out/name` gets `config.pbtxt`, the bundle's `manifest.json` and version `1` of the model. It is written
    completely or not at all; an earlier packaged model is replaced if it is unchanged.

    Args:
        bundle: a bundle or its folder.
        out: the repository's folder; other models in it are unchanged.
        name: name of the model, which clients use; by default the name of the bundle's folder.
        options: how Triton runs the model.
        weights: `link` hard-links weight files and plans if possible, `copy` copies them; `auto` links plans, and
            weight files that already have several hard links.
        progress: called with the name of each step.

    Raises:
        SpecError: for invalid options or an invalid name.
        BundleError: if the bundle or the engine is invalid, or `out` cannot be written or holds something else.
        TargetUnavailableError: if `tritonclient`, which has Triton's schema, is not installed.
    """
    placing = parse_choice("weights", Placing, weights)
    schema()
    progress("reading the bundle")
    opened = load_bundle(bundle.path if isinstance(bundle, Bundle) else bundle)
    chosen = (options or TritonOptions()).for_task(opened.spec.task)
    target = model_folder(opened, Path(out), name)
    if chosen.backend is Backend.PYTHON:
        return _package_generation(opened, target, chosen, placing, progress)
    return _package_graph(opened, target, chosen, placing, progress)


def _package_graph(
    bundle: Bundle, target: Path, options: TritonOptions, placing: Placing, progress: Progress
) -> Package:
    """Package the graph of a single-pass task, or an engine of it."""
    engine, built = find_engine(bundle, options.engine) if options.backend is Backend.TENSORRT else (None, None)
    profiles = [] if built is None else built.profiles
    graph = served(bundle.model.record, options.backend or Backend.ONNXRUNTIME)
    config = model_config(target.name, graph, bundle.spec.dtype, profiles, options)
    if built is not None:
        warn_of_gaps(built, config.max_batch_size)
    elif bundle.spec.quantization is not None:
        warnings.warn(ROUNDING, FunnelExportWarning, stacklevel=3)
    check_unchanged(target)
    with replace_folder(target, is_model, hint=HINT) as folder:
        write_model(folder, bundle, config, engine, placing, progress)
    return Package(target, config, engine)


def _package_generation(
    bundle: Bundle, target: Path, options: TritonOptions, placing: Placing, progress: Progress
) -> Package:
    """Package a bundle that generates text, or engines of it, for the Python back end."""
    check_tokenizer(bundle.path)
    engines = find_engines(bundle, options)
    config = generation_config(target.name, options)
    check_unchanged(target)
    with replace_folder(target, is_model, hint=HINT) as folder:
        write_generation(folder, bundle, config, engines, placing, progress)
    return Package(target, config, options.engine)
