"""`package`: a bundle, or an engine of it, as a model of a Triton model repository."""

import os
from pathlib import Path

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.packaging.triton import (
    Package,
    check_unchanged,
    find_engine,
    is_model,
    model_folder,
    served,
    warn_of_gaps,
    write_model,
)
from funnel_export.packaging.triton_config import model_config, schema
from funnel_export.progress import Progress, no_progress
from funnel_export.spec.choices import Backend, parse_choice
from funnel_export.spec.defaults import PACKAGE_WEIGHTS
from funnel_export.spec.triton import TritonOptions
from funnel_export.system.atomic import replace_folder
from funnel_export.system.place import Placing


def package(
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: TritonOptions | None = None,
    weights: Placing | str = PACKAGE_WEIGHTS,
    progress: Progress = no_progress,
) -> Package:
    """Add a bundle to a Triton model repository, as the graph that it is or an engine that was compiled from it.

    The folder `out/name` gets `config.pbtxt`, the bundle's `manifest.json` and version `1` of the model. It appears
    whole or not at all; a model that was packaged there earlier, and not changed since, is replaced.

    Args:
        bundle: a bundle or its folder.
        out: the repository's folder; what else is in it stays as it is.
        name: of the model, as clients ask for it; by default the name of the bundle's folder.
        options: how Triton is to run it.
        weights: `link` hard-links weight files and plans where it can, `copy` copies them; `auto` links plans, and
            weight files that have several names already, so that a bundle of copies stays without links.
        progress: called with the name of each step.

    Raises:
        SpecError: for invalid options or an invalid name.
        BundleError: if the bundle or the engine is not whole, or `out` cannot be written or holds something else.
        TargetUnavailableError: if `tritonclient`, which has Triton's schema, is not installed.
    """
    chosen = options or TritonOptions()
    placing = parse_choice("weights", Placing, weights)
    schema()
    progress("reading the bundle")
    opened = load_bundle(bundle.path if isinstance(bundle, Bundle) else bundle)
    target = model_folder(opened, Path(out), name)
    engine, built = (None, None) if chosen.backend is Backend.ONNXRUNTIME else find_engine(opened, chosen.engine)
    profiles = [] if built is None else built.profiles
    graph = served(opened.model.record, chosen.backend)
    config = model_config(target.name, graph, opened.spec.dtype, profiles, chosen)
    if built is not None:
        warn_of_gaps(built, config.max_batch_size)
    check_unchanged(target)
    with replace_folder(target, is_model, hint="another --name, or another OUT in which you may write") as folder:
        write_model(folder, opened, config, engine, placing, progress)
    return Package(target, config, engine)
