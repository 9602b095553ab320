"""Packages a bundle as a model of a Triton model repository."""

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funnel_export.bundle.engine import (
    Engine,
    EngineManifest,
    check_profiles,
    engine_names,
    engines_named,
    load_engine,
    read_engine_manifest,
)
from funnel_export.bundle.load import Bundle, is_bundle
from funnel_export.bundle.manifest import ENGINES, MANIFEST, MODEL, GraphRecord, NamedFiles
from funnel_export.errors import BundleError, FunnelExportWarning, SpecError
from funnel_export.packaging.triton_config import is_as_written, noted_digest, parse_config, write_config
from funnel_export.packaging.triton_files import digest_in, digest_of, write_version
from funnel_export.progress import Progress
from funnel_export.spec.choices import Backend, Dtype
from funnel_export.spec.profile import BATCH
from funnel_export.spec.triton import TritonOptions
from funnel_export.system.files import LARGEST_JSON, read_bytes
from funnel_export.system.place import Placing, copied_bytes, place
from funnel_export.system.room import check_room
from funnel_export.targets.base import check_kind
from funnel_export.targets.registry import get_target

CONFIG, VERSION, PLAN, ENGINE = "config.pbtxt", "1", "model.plan", "engine.json"
GRAPH = "model.onnx"
"""File name of a graph that Triton requires."""
TARGET = "tensorrt"
"""The target whose engines Triton loads."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Package:
    """A model in a repository."""

    path: Path
    """Its folder; the repository is the folder above."""
    config: Any
    """Content of `config.pbtxt`: a `ModelConfig` of Triton's schema."""
    engine: str | None
    """Name of the engine that was packaged, None for graphs."""

    def files(self) -> list[str]:
        """The files in its folder."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())

    def to_json(self) -> str:
        """The package as one JSON object."""
        backend = self.config.backend or self.config.platform
        facts = {"path": str(self.path), "name": self.config.name, "backend": backend, "engine": self.engine}
        return json.dumps(facts | {"max_batch_size": self.config.max_batch_size, "files": self.files()})


def write_model(
    folder: Path, bundle: Bundle, config: Any, engine: str | None, placing: Placing, progress: Progress
) -> None:
    """Write the model into an empty folder."""
    linked = Placing.LINK if placing is Placing.AUTO else placing  # plans may have several hard links
    try:
        _check_room(folder, bundle, engine, placing if engine is None else linked)
        _write_config(folder, config)
        shutil.copyfile(bundle.path / MANIFEST, folder / MANIFEST)
        (folder / VERSION).mkdir()
        if engine is None:
            progress("writing the graph")
            _write_graph(folder / VERSION, bundle, placing)
        else:
            progress("verifying the engine")
            plan = load_engine(bundle, engine)
            check_kind(get_target(TARGET), plan)
            progress("writing the engine")
            place(plan.file, folder / VERSION / PLAN, linked)
            shutil.copyfile(plan.path / MANIFEST, folder / ENGINE)
    except OSError as err:
        raise BundleError("the model could not be written", got=err, wanted="space and permission to write") from err


def write_generation(
    folder: Path, bundle: Bundle, config: Any, engines: Sequence[Engine], placing: Placing, progress: Progress
) -> None:
    """Write a model that generates text into an empty folder."""
    linked = Placing.LINK if placing is Placing.AUTO else placing
    try:
        weights = [bundle.path / weight.file for weight in bundle.manifest.weights]
        plans = [engine.path / record.file for engine in engines for record in engine.manifest.files]
        needed = copied_bytes(weights, folder, placing) + copied_bytes(plans, folder, linked)
        check_room(folder, needed, "the files that are copied")
        _write_config(folder, config, digest_of(bundle))
        shutil.copyfile(bundle.path / MANIFEST, folder / MANIFEST)
        (folder / VERSION).mkdir()
        progress("writing the bundle")
        write_version(folder / VERSION, bundle, engines, placing, linked)
    except OSError as err:
        raise BundleError("the model could not be written", got=err, wanted="space and permission to write") from err


def _check_room(folder: Path, bundle: Bundle, engine: str | None, placing: Placing) -> None:
    if engine is None:
        large = [bundle.path / weight.file for weight in bundle.manifest.weights]
    else:
        large = [bundle.path / ENGINES / engine / PLAN]
    check_room(folder, copied_bytes(large, folder, placing), "the files that are copied")


def model_folder(bundle: Bundle, out: Path, name: str | None) -> Path:
    """The folder of the model.

    Raises:
        SpecError: if the name is invalid.
        BundleError: if the folder or the repository would be in a bundle, or replace it.
    """
    chosen = bundle.path.resolve().name if name is None else name
    if not _NAME.fullmatch(chosen):
        raise SpecError(
            "invalid model name",
            got=repr(chosen),
            wanted="up to 128 letters, digits and _.-, starting with a letter, digit or underscore",
            hint="--name my-model",
        )
    repository = out.resolve()
    if repository.is_relative_to(bundle.path.resolve()) or is_bundle(repository):
        raise BundleError(
            "the model repository is inside a bundle", got=out, wanted="a folder outside the bundle", hint="models"
        )
    if repository / chosen == bundle.path.resolve():
        raise BundleError("the model would replace the bundle", got=repository / chosen, hint="use another --name")
    return repository / chosen


def _check_servable(name: str, manifest: EngineManifest) -> None:
    """Refuse plans without weights, and warn if a plan needs a server option (for host code in the plan)."""
    if manifest.options.get("strip_plan") is True:
        raise BundleError(
            "Triton cannot load a plan that was built without weights",
            got=f"{name}: strip_plan",
            wanted="a plan with its weights",
            hint="compile again without strip_plan",
        )
    if manifest.options.get("version_compatible") is True:
        warnings.warn(
            f"{name} is version compatible: start Triton with --backend-config=tensorrt,version-compatible=true",
            FunnelExportWarning,
            stacklevel=5,
        )


def find_engine(bundle: Bundle, name: str | None) -> tuple[str, EngineManifest]:
    """The engine with a name, or the only one that Triton can load, and its manifest."""
    found = {
        each: read_engine_manifest(bundle.path / ENGINES / each)
        for each in engine_names(bundle)
        if name in (None, each)
    }
    fitting = [each for each, manifest in found.items() if (manifest.target, manifest.graph) == (TARGET, MODEL)]
    if len(fitting) == 1:
        _check_servable(fitting[0], found[fitting[0]])
        check_profiles(found[fitting[0]], bundle.model)
        return fitting[0], found[fitting[0]]
    if fitting:
        raise SpecError("the bundle has several engines", got=", ".join(fitting), hint=f"--engine {fitting[0]}")
    if name is not None and name not in found:
        raise SpecError(
            "the bundle has no such engine", got=repr(name), wanted=" or ".join(engine_names(bundle)) or None
        )
    others = ", ".join(f"{each} of target {manifest.target}" for each, manifest in found.items())
    raise BundleError(
        "Triton's TensorRT back end loads only engines of the target tensorrt",
        got=others or "a bundle without engines",
        wanted=f"an engine of target {TARGET}",
        hint=f"funnel-export compile {bundle.path} --target {TARGET}, or --backend onnxruntime",
    )


def find_engines(bundle: Bundle, options: TritonOptions) -> list[Engine]:
    """The engines that a model that generates text runs; none if it runs the graphs.

    Raises:
        SpecError: if there is no such engine or target, or the target is another one or needs engines.
        BundleError: if an engine is damaged, or has files that its target does not write.
    """
    target = None if options.target is None else get_target(options.target)
    if options.engine is None:
        if target is not None and not target.runs_graphs:
            raise SpecError(f"{target.name} runs engines only", got=f"--target {target.name}", hint="add --engine")
        return []
    engines = [load_engine(bundle, name) for name in engines_named(bundle, options.engine)]
    if not engines:
        raise SpecError(
            "the bundle has no such engine", got=repr(options.engine), wanted=" or ".join(engine_names(bundle)) or None
        )
    found = {engine.manifest.target for engine in engines}
    if len(found) > 1 or (target is not None and found != {target.name}):
        raise SpecError(
            "the engines are for another target",
            got=", ".join(f"{engine.name} of target {engine.manifest.target}" for engine in engines),
            wanted=f"engines of {target.name if target else 'one target'}",
        )
    for engine in engines:
        check_kind(get_target(engine.manifest.target), engine)
    return engines


def served(graph: GraphRecord, backend: Backend) -> GraphRecord:
    """The graph's record as Triton serves it: for ONNX Runtime, bfloat16 outputs become float32."""
    if backend is Backend.TENSORRT:
        return graph
    widened = {str(Dtype.BFLOAT16): str(Dtype.FLOAT32)}
    outputs = [value.model_copy(update={"dtype": widened.get(value.dtype, value.dtype)}) for value in graph.outputs]
    return graph.model_copy(update={"outputs": outputs})


def warn_of_gaps(engine: EngineManifest, max_batch_size: int) -> None:
    """Warn if no optimization profile of an engine takes some batch size up to `max_batch_size`."""
    sizes = [size for size in range(1, max_batch_size + 1) if not any(size in p.axes[BATCH] for p in engine.profiles)]
    if engine.profiles and sizes:
        warnings.warn(
            f"no optimization profile takes batches of {', '.join(map(str, sizes[:8]))}{' …' * (len(sizes) > 8)}; "
            "Triton may form such batches, and answers them with an error",
            FunnelExportWarning,
            stacklevel=4,
        )


def _write_config(folder: Path, config: Any, files: str | None = None) -> None:
    """Write `config.pbtxt`, and check it by reading it back.

    It is written first: a server that polls the repository then refuses the folder during the write, since the name in
    the config is not the folder's. Without a config, the server would generate one.
    """
    (folder / CONFIG).write_text(write_config(config, files), encoding="utf-8")
    if parse_config((folder / CONFIG).read_text(encoding="utf-8")) != config:
        raise BundleError("config.pbtxt was not read back as written", got=folder / CONFIG, hint="use another --name")


def _write_graph(folder: Path, bundle: Bundle, placing: Placing) -> None:
    """Write the graph, and the weights beside it under their original names."""
    if bundle.spec.dtype is Dtype.BFLOAT16:
        (folder / GRAPH).write_bytes(with_float32_outputs(bundle.model.path))
    else:
        shutil.copyfile(bundle.model.path, folder / GRAPH)
    for weight in bundle.manifest.weights:
        place(bundle.path / weight.file, folder / weight.file, placing)


def with_float32_outputs(graph: Path) -> bytes:
    """The graph with its bfloat16 outputs cast to float32, which is exact, under the same names."""
    import onnx_ir as ir

    model = ir.load(graph)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype is ir.DataType.BFLOAT16:
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}/Cast")
            wide = cast.outputs[0]
            wide.name, wide.dtype, wide.shape = value.name, ir.DataType.FLOAT, value.shape
            value.name = f"{value.name}.bfloat16"
            model.graph.append(cast)
            model.graph.outputs[index] = wide
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def is_model(path: Path) -> bool:
    """Whether this folder holds only an unchanged packaged model, so that a new one may replace it."""
    version = path / VERSION
    try:
        named = NamedFiles.read(path / MANIFEST)
        config = read_bytes(path / CONFIG, LARGEST_JSON).decode()
        names = {entry.name for entry in path.iterdir()}
        if named is None or not is_as_written(config) or version.is_symlink():
            return False
        files = noted_digest(config)
        whole = (
            _holds_only(version, {GRAPH, PLAN} | named.weight_names) if files is None else digest_in(version) == files
        )
    except (OSError, ValueError):  # pydantic's and Unicode's errors are ValueErrors
        return False
    return whole and names <= {CONFIG, MANIFEST, ENGINE, VERSION}


def _holds_only(folder: Path, files: set[str]) -> bool:
    return all(entry.name in files and entry.is_file() for entry in folder.iterdir())


def check_unchanged(target: Path) -> None:
    """Raise `BundleError` for a model changed since it was packaged; `replace_folder` refuses other content."""
    if (target / CONFIG).exists() and not target.is_symlink() and not is_model(target):
        raise BundleError(
            "the existing model was changed, or was not written by package; it was not replaced",
            got=target,
            wanted="a new model, or an unchanged one that package wrote",
            hint="use another --name, or move the model out of the repository",
        )
