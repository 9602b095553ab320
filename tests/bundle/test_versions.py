"""What an earlier version wrote is refused with the command that makes it again, and that command replaces it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import Recipe
from pydantic import BaseModel
from tamper import rewrite_json

from funnel_export import (
    Bundle,
    BundleError,
    FunnelExportWarning,
    check,
    compile_bundle,
    export,
    load_bundle,
    package,
)
from funnel_export.bundle.engine import EngineManifest
from funnel_export.bundle.manifest import Manifest
from funnel_export.bundle.record import SCHEMA
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.report.pages import write_reports
from funnel_export.verify.parity_report import ParityReport

STORED = Path(__file__).parent / "stored"
"""Files of the present version of the schema, as the package wrote them when this folder was made."""
KINDS: dict[str, type[BaseModel]] = {
    "bundle.json": Manifest,
    "engine.json": EngineManifest,
    "parity.json": ParityReport,
    "latency.json": LatencyReport,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of its own, with an engine."""
    ignored = shutil.ignore_patterns("reports", "engines")
    made = load_bundle(shutil.copytree(Recipe().bundle().path, tmp_path / "bundle", ignore=ignored))
    compile_bundle(made, "onnxruntime")
    return made


def first_version(manifest: dict[str, Any]) -> None:
    """A bundle's manifest as version 1 wrote it."""
    (graph,) = manifest["graphs"].values()
    for port in (*graph["inputs"], *graph["outputs"]):
        del port["kind"]
    for weight in manifest["weights"]:
        del weight["source"]
    manifest.update(schema_version=1, graphs=[graph])


def first_engine(manifest: dict[str, Any]) -> None:
    """An engine's manifest as version 1 wrote it."""
    del manifest["graph"]
    manifest["built_for"].pop("gpus")
    manifest["built_for"].update(compute_capabilities=[], driver=None)
    manifest.update(schema_version=1)


@pytest.mark.parametrize("name", KINDS)
def test_files_of_the_same_version_are_read(name: str) -> None:
    """If this fails, users' files are refused: give a new field a default, or increase the number of the version."""
    content = (STORED / name).read_text()
    assert json.loads(content)["schema_version"] == SCHEMA, "write new files into the folder"
    read = KINDS[name].model_validate_json(content).model_dump(mode="json")
    assert has_all_of(read, json.loads(content))


def has_all_of(read: Any, stored: Any) -> bool:
    """Whether everything stored was read, apart from new fields."""
    if isinstance(stored, dict):
        return all(name in read and has_all_of(read[name], value) for name, value in stored.items())
    if isinstance(stored, list):
        return len(read) == len(stored) and all(map(has_all_of, read, stored))
    return bool(read == stored)


def test_a_bundle_is_exported_again(bundle: Bundle) -> None:
    rewrite_json(bundle.path / "manifest.json", first_version)
    with pytest.raises(
        BundleError, match=r"(?s)by an earlier version.*schema version 1.*wanted.*2.*try: funnel-export export again"
    ):
        load_bundle(bundle.path)
    again = export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert load_bundle(again.path).manifest.schema_version == 2


def test_a_bundle_of_a_later_version_is_left_to_that_version(bundle: Bundle) -> None:
    rewrite_json(bundle.path / "manifest.json", lambda manifest: manifest.update(schema_version=3))
    with pytest.raises(BundleError, match="by a later version"):
        load_bundle(bundle.path)


def test_files_beside_an_earlier_bundle_are_kept(bundle: Bundle) -> None:
    rewrite_json(bundle.path / "manifest.json", first_version)
    (bundle.path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert (bundle.path / "notes.txt").read_text() == "mine"


def test_an_engine_is_left_out_and_compiled_again(bundle: Bundle) -> None:
    folder = bundle.path / "engines" / "onnxruntime-cpu"
    rewrite_json(folder / "manifest.json", first_engine)
    with pytest.warns(FunnelExportWarning, match=r"(?s)left out.*by an earlier version.*funnel-export compile again"):
        report = check(bundle, targets=["onnxruntime"], max_length=2)
    assert [target.name for target in report.targets] == ["onnxruntime"]
    assert compile_bundle(bundle, "onnxruntime").path == folder
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 2


def test_a_report_is_made_again(bundle: Bundle) -> None:
    check(bundle, targets=["onnxruntime"], max_length=2)
    file = bundle.path / "reports" / "parity.json"
    rewrite_json(file, lambda report: report.update(schema_version=1))
    with pytest.raises(BundleError, match=r"(?s)by an earlier version.*funnel-export check again"):
        write_reports(bundle)
    check(bundle, targets=["onnxruntime"], max_length=2)
    assert json.loads(file.read_text())["schema_version"] == 2


def test_a_packaged_model_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    made = package(bundle, tmp_path / "models", name="mine")
    rewrite_json(made.path / "manifest.json", first_version)
    package(bundle, tmp_path / "models", name="mine")
    assert json.loads((made.path / "manifest.json").read_text())["schema_version"] == 2


NO_BUNDLES: dict[str, dict[str, Any]] = {
    "no lists": {"graphs": [], "weights": [{"file": "src"}]},
    "no version": {"graphs": {}, "weights": []},
    "another program's": {"schema_version": 1, "files": [{"file": "src"}]},
}


@pytest.mark.parametrize("name", NO_BUNDLES)
def test_a_folder_with_somebodys_manifest_is_no_bundle(name: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    (work / "src" / "thesis.tex").write_text("mine")
    (work / "manifest.json").write_text(json.dumps(NO_BUNDLES[name]))
    with pytest.raises(BundleError, match="holds something else"):
        export(Recipe().checkpoint(), work, funnel="1:3:2", task="text-generation")
    assert (work / "src" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("first", [True, False], ids=["version 1", "version 2"])
def test_a_folder_in_place_of_a_file_is_kept(first: bool, bundle: Bundle) -> None:
    if first:
        rewrite_json(bundle.path / "manifest.json", first_version)
    (bundle.path / "model.safetensors").unlink()
    (bundle.path / "model.safetensors").mkdir()
    (bundle.path / "model.safetensors" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert (bundle.path / "model.safetensors" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("manifest", [{"target": "x", "files": [{"file": "data"}]}, {"schema_version": 1}])
def test_a_folder_among_engines_with_somebodys_manifest_is_no_engine(manifest: object, bundle: Bundle) -> None:
    folder = bundle.path / "engines" / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="holds something else"):
        compile_bundle(bundle, "onnxruntime", name="mine")
    assert (folder / "data").is_dir()


def test_a_report_of_no_graph_is_of_no_bundle(bundle: Bundle) -> None:
    check(bundle, targets=["onnxruntime"], max_length=2)
    rewrite_json(bundle.path / "reports" / "parity.json", lambda report: report.update(graph_digests={}))
    with pytest.raises(BundleError, match="graph_digests"):
        write_reports(bundle)
