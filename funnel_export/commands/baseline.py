"""The dense baseline of a benchmark: an existing bundle, or one exported from the bundle's own weights."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.bundle.manifest import MANIFEST, inside
from funnel_export.checkpoint.checkpoint import CONFIG, INDEX
from funnel_export.commands.export import export
from funnel_export.errors import SpecError
from funnel_export.progress import Progress
from funnel_export.system.atomic import folder_beside
from funnel_export.system.place import Placing, place


def open_baseline(bundle: Bundle, dense: Bundle | str | os.PathLike[str]) -> Bundle:
    """Open a dense bundle as the baseline of a bundle with a funnel.

    Raises:
        SpecError: if it has a funnel, or its weights, config or export settings differ; lists all differences.
        BundleError: if it is not a complete bundle.
    """
    opened = dense if isinstance(dense, Bundle) else load_bundle(dense)
    if opened.spec.funnel is not None:
        raise SpecError(
            "the baseline has a funnel", got=f"{opened.path}: {opened.spec.funnel}", wanted="a dense bundle"
        )
    wanted = replace(bundle.spec, funnel=None)
    differences = [
        (field.name, getattr(opened.spec, field.name), getattr(wanted, field.name))
        for field in fields(wanted)
        if getattr(opened.spec, field.name) != getattr(wanted, field.name)
    ]
    differences += [
        (f"config, {name}", getattr(opened.architecture, name), getattr(bundle.architecture, name))
        for name in type(bundle.architecture).model_fields
        if getattr(opened.architecture, name, None) != getattr(bundle.architecture, name)
    ]
    if opened.manifest.weights != bundle.manifest.weights:
        found, expected = (", ".join(map(str, each.manifest.weights)) for each in (opened, bundle))
        differences.append(("weights", found, expected))
    if differences:
        raise SpecError(
            "the baseline is not the dense counterpart of the bundle",
            got="\n".join(f"{name}: {found}" for name, found, _ in differences),
            wanted="\n".join(f"{name}: {expected}" for name, _, expected in differences),
            hint="without --dense, bench exports the baseline itself",
        )
    return opened


def check_graph(bundle: Bundle, dense: Bundle, progress: Progress) -> None:
    """Check that the graph of a given baseline is the one that `export` writes: a slower one would pass a gate.

    Args:
        bundle: the bundle with the funnel.
        dense: what `open_baseline` has opened.
        progress: called with the name of each step.

    Raises:
        SpecError: if it is another graph.
    """
    with _folder(bundle) as folder:
        fresh = _export(bundle, folder, progress)
    found, wanted = ({role: graph.sha256 for role, graph in each.graphs.items()} for each in (dense, fresh))
    if found != wanted:
        raise SpecError(
            "the graph of the baseline is not the one that this version exports, so there is no gate",
            got=f"{dense.path}: {found}",
            wanted=wanted,
            hint="export the dense bundle again; or without --dense, bench exports the baseline itself",
        )


@contextlib.contextmanager
def baseline(bundle: Bundle, given: Bundle | None, progress: Progress) -> Iterator[Bundle]:
    """Yield the dense model as a bundle in a temporary folder, into which engines can be compiled.

    Args:
        bundle: the bundle with the funnel.
        given: its dense counterpart; if None, it is exported from the bundle's own weights.
        progress: called with the name of each step.
    """
    with _folder(bundle if given is None else given) as folder:
        # A subfolder: an export would wait for the lock of the folder itself.
        yield _export(bundle, folder, progress) if given is None else _copy(given, folder)


@contextlib.contextmanager
def _folder(bundle: Bundle) -> Iterator[Path]:
    """A folder beside the bundle, where weights can be hard links; in the temporary folder if that is not writable."""
    path = bundle.path.resolve()
    if not os.access(path.parent, os.W_OK):
        path = Path(tempfile.gettempdir(), path.name)
    with folder_beside(path) as folder:
        yield folder / "baseline" / "dense"


def _export(bundle: Bundle, out: Path, progress: Progress) -> Bundle:
    spec = bundle.spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about float16: the export of the bundle has warned
        return export(
            bundle.path,
            out,
            funnel=None,
            task=spec.task,
            dtype=spec.dtype,
            opset=spec.opset,
            logits=spec.logits,
            progress=lambda step, *_: progress(f"dense baseline: {step}"),
        )


def _copy(bundle: Bundle, out: Path) -> Bundle:
    """Copy the verified files of a bundle, without engines and reports; hard-link them if possible.

    Others are left out: the folder may be a stranger's, with links to other files of this machine.
    """
    manifest = bundle.manifest
    records = (*manifest.graphs.values(), *manifest.weights, *manifest.modules)
    names = [MANIFEST, CONFIG, *(record.file for record in records)]
    if (bundle.path / INDEX).exists():
        names.append(INDEX)
    for name in dict.fromkeys(names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        place(inside(bundle.path, name), out / name, Placing.LINK)
    return load_bundle(out)
