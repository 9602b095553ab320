"""What an export to an earlier bundle keeps, removes and refuses to remove."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import ALL_LAYERS, Recipe
from safetensors.torch import load_file, save_file
from tamper import listing

from funnel_export import Bundle, check, export, load_bundle
from funnel_export.bundle.engine import engine_names
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import BundleError, FunnelExportWarning


def test_an_export_of_the_same_graph_keeps_its_engines(bundle: Bundle) -> None:
    before = listing(bundle.path / "engines")
    export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert listing(bundle.path / "engines") == before
    assert {file.stat().st_nlink for file in (bundle.path / "engines").rglob("*.*")} == {1}
    assert check(bundle.path, max_length=2).passed


def test_an_export_names_the_engines_that_it_removes(bundle: Bundle) -> None:
    names = engine_names(bundle)
    with pytest.warns(FunnelExportWarning, match=f"(?s)removed engines.*{', '.join(names)}; compile again"):
        export(Recipe().checkpoint(), bundle.path, funnel=ALL_LAYERS.funnel, task="text-generation", overwrite=True)
    assert engine_names(load_bundle(bundle.path)) == []


def test_an_export_removes_no_engine_unasked(bundle: Bundle) -> None:
    before = listing(bundle.path)
    names = ", ".join(f"engines/{name}" for name in engine_names(bundle))
    with pytest.raises(BundleError, match=f"(?s)would remove.*{names} in {bundle.path}.*--overwrite"):
        export(Recipe().checkpoint(), bundle.path, funnel=ALL_LAYERS.funnel, task="text-generation")
    assert listing(bundle.path) == before


def test_an_export_removes_no_report_unasked(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    check(bundle, max_length=2)
    before = listing(bundle.path)
    monkeypatch.setattr(Checkpoint, "open", lambda _: pytest.fail("it is said before any work"))
    with pytest.raises(BundleError, match=r"(?s)would remove.*reports/parity.json, .*report.md in .*--overwrite"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert listing(bundle.path) == before


def scale_weights(file: Path) -> None:
    save_file({name: weight * 2 for name, weight in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda file: file.write_text("{}")),
        ("config.json", lambda file: file.write_text(file.read_text().replace("}", ' ,"mine": 1}', 1))),
        ("model.onnx", lambda file: file.write_bytes(file.read_bytes() + b"\x0a\x00")),
        ("model.safetensors", scale_weights),
    ],
)
def test_an_export_removes_no_file_that_was_changed(
    file: str, change: Callable[[Path], object], bundle: Bundle
) -> None:
    change(bundle.path / file)
    before = listing(bundle.path)
    with pytest.raises(BundleError, match=f"(?s)would remove.*got: {file}.* in {bundle.path}.*--overwrite"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert listing(bundle.path) == before
    export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation", overwrite=True)
    load_bundle(bundle.path)


def test_what_the_new_bundle_has_too_is_not_lost(bundle: Bundle, tmp_path: Path) -> None:
    """As where links share the weights: who trains the checkpoint in place changes the bundle, and exports again."""
    shutil.rmtree(bundle.path / "engines")
    source = shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")
    scale_weights(source / "model.safetensors")
    (bundle.path / "model.safetensors").unlink()
    (bundle.path / "model.safetensors").hardlink_to(source / "model.safetensors")
    with pytest.raises(BundleError):
        load_bundle(bundle.path)
    export(source, bundle.path, funnel="1:3:2", task="text-generation")
    load_bundle(bundle.path)


def test_an_export_over_nothing_but_a_bundle_needs_no_leave(bundle: Bundle) -> None:
    shutil.rmtree(bundle.path / "engines")
    (bundle.path / "reports").mkdir()
    made = export(Recipe().checkpoint(), bundle.path, funnel=ALL_LAYERS.funnel, task="text-generation")
    assert load_bundle(bundle.path).spec == made.spec


@pytest.mark.parametrize("file", ["reports/notes.txt", "engines/openvino-cpu/notes.txt", "reports/runs/notes.txt"])
def test_an_export_names_the_file_that_it_would_have_removed(file: str, bundle: Bundle) -> None:
    mine = bundle.path / file
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    before = listing(bundle.path)
    named = bundle.path.joinpath(*Path(file).parts[:2])
    with pytest.raises(BundleError, match=f"(?s)holds something else.*{named}.*export to another name"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert listing(bundle.path) == before


@pytest.mark.parametrize("folder", ["reports", "engines"])
def test_an_export_does_not_follow_a_link_out_of_the_bundle(folder: str, bundle: Bundle, tmp_path: Path) -> None:
    place, elsewhere = bundle.path / folder, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(elsewhere)
    with pytest.raises(BundleError, match="holds something else"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert place.is_symlink()


def test_an_export_may_replace_what_commands_have_written(bundle: Bundle) -> None:
    check(bundle, max_length=2)
    (bundle.path / "reports" / ".parity.json.partial-abcdefgh").write_text("{}")  # of a check that was killed
    export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation", overwrite=True)
    assert not (bundle.path / "reports").exists()


def test_an_export_does_not_replace_what_else_lies_among_engines(bundle: Bundle) -> None:
    (bundle.path / "engines" / ".openvino-cpu.partial-abcdefgh").mkdir()  # what a killed build leaves
    export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert [path.name for path in (bundle.path / "engines").iterdir() if path.name.startswith(".")] == []
    (bundle.path / "engines" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        export(Recipe().checkpoint(), bundle.path, funnel="1:3:2", task="text-generation")
    assert (bundle.path / "engines" / "notes.txt").read_text() == "mine"
