"""`package`: add a bundle, or one of its engines, to a Triton model repository."""

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
    """Add a bundle's graph, or one of its engines, to a Triton model repository.

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
    with replace_folder(target, is_model, hint="use another --name, or an OUT that you may write") as folder:
        write_model(folder, opened, config, engine, placing, progress)
    return Package(target, config, engine)
