"""An engine is whole, of its bundle and for this machine, or it is refused before a runtime sees it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported import ALL_LAYERS, Recipe, with_weights
from tamper import listing, rewrite_json

from funnel_export import Bundle, check, compile_bundle, load_bundle
from funnel_export.bundle.engine import Engine, engine_names, load_engine, record_file
from funnel_export.errors import BundleError, FunnelExportError, SpecError, TargetRefusedError
from funnel_export.spec.profile import Profile
from funnel_export.targets.base import Target, check_fits
from funnel_export.targets.openvino import OpenVinoTarget
from funnel_export.targets.registry import get_target
from funnel_export.verify.candidates import candidates

TOKENS = {"input_ids": np.arange(1, 15).reshape(2, 7), "attention_mask": np.ones((2, 7), np.int64)}


def open_engine(bundle: Bundle, name: str) -> Engine:
    """An engine that may be run."""
    engine = load_engine(bundle, name)
    check_fits(get_target(engine.manifest.target), engine)
    return engine


def run_engine(bundle: Bundle, target: Target, name: str) -> None:
    """Verify an engine and run it, as a check does."""
    engine = load_engine(bundle, name)
    check_fits(target, engine)
    target.load(bundle.model, engine=engine).run(TOKENS)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_engine_computes_what_its_bundle_does(target: str, bundle: Bundle) -> None:
    engine = open_engine(bundle, f"{target}-cpu")
    wanted = get_target(target).load(bundle.model).run(TOKENS)["logits"]
    got = get_target(target).load(bundle.model, engine=engine).run(TOKENS)["logits"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_check_compares_engines_too(bundle: Bundle) -> None:
    report = check(bundle, max_length=3)
    assert report.passed
    assert {(each.target, each.engine) for each in report.targets} == {
        ("onnxruntime", None),
        ("onnxruntime", "onnxruntime-cpu"),
        ("openvino", None),
        ("openvino", "openvino-cpu"),
    }


def edit(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite_json(folder / "manifest.json", lambda manifest: manifest.update(changes))


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.blob").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.blob").write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.blob", 1000)


def link(folder: Path) -> None:
    (folder / "model.blob").rename(folder.parent / "elsewhere")
    (folder / "model.blob").symlink_to(folder.parent / "elsewhere")


def link_all(folder: Path) -> None:
    folder.rename(folder.parent.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent.parent / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / "model.blob").unlink()
    os.mkfifo(folder / "model.blob")


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit flipped": (flip, "not the one that was built"),
    "truncated": (truncate, "not the one that was built"),
    "blob missing": (lambda folder: (folder / "model.blob").unlink(), "cannot be read"),
    "blob a link": (link, "symbolic link"),
    "folder a link": (link_all, "symbolic link"),
    "blob a pipe": (pipe, "cannot be read"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no engine here"),
    "manifest no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "is not a manifest"),
    "another schema": (edit(schema_version=1), "by an earlier version"),
    "an unknown key": (edit(extra=1), "extra"),
    "a path for a file": (edit(files=[{"file": "../model.onnx", "size": 1, "sha256": "0" * 64}]), "files.0.file"),
    "no files": (edit(files=[]), "files"),
    "another graph": (edit(graph_sha256="0" * 64), "another bundle"),
    "other weights": (edit(weights=[]), "another bundle"),
    "another version": (edit(version="2020.1"), "built with OpenVINO 2020.1"),
    "another target": (edit(target="onnxruntime"), "does not run in openvino here"),
    "another device": (
        edit(built_for={"device": "Z80", "platform": "linux-x86_64"}),
        "built for Z80",
    ),
    "another platform": (
        edit(built_for={"device": "Z80", "platform": "cpm-z80"}),
        "on cpm-z80",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_was_changed_is_refused_before_the_runtime_reads_it(
    case: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = SPOILT[case]
    change(bundle.path / "engines" / "openvino-cpu")
    monkeypatch.setattr("funnel_export.targets.openvino._import", lambda *_: pytest.fail("the runtime read it"))
    with pytest.raises(BundleError, match=message):
        run_engine(bundle, OpenVinoTarget(), "openvino-cpu")


def test_an_engine_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    others = {
        "graph": ALL_LAYERS.bundle(),
        "weights": with_weights(Recipe(), lambda weights: weights["model.norm.weight"].mul_(2)),
    }
    for name, other in others.items():
        folder = shutil.copytree(other.path, tmp_path / name)
        shutil.copytree(bundle.path / "engines", folder / "engines")
        with pytest.raises(BundleError, match="made from another bundle"):
            load_engine(load_bundle(folder), "openvino-cpu")


def test_check_refuses_a_spoilt_engine_that_was_asked_for_and_else_leaves_it_out(bundle: Bundle) -> None:
    flip(bundle.path / "engines" / "openvino-cpu")
    with pytest.raises(BundleError, match="not the one that was built"):
        check(bundle, targets=["openvino"], max_length=1)
    with pytest.warns(UserWarning, match="an engine is left out: a file of an engine is not the one that was built"):
        report = check(bundle, max_length=1)
    assert [each.engine for each in report.targets] == [None, "onnxruntime-cpu", None]


def test_an_engine_of_an_unknown_make_hinders_no_other(bundle: Bundle) -> None:
    (bundle.path / "engines" / "future").mkdir()
    (bundle.path / "engines" / "future" / "manifest.json").write_text('{"schema_version": 3}')
    with pytest.warns(UserWarning, match="an engine is left out: manifest.json was written by a later version"):
        assert check(bundle, targets=["onnxruntime"], max_length=1).passed


def test_a_build_that_fails_leaves_the_earlier_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(bundle.path)

    def fail(*_: object) -> None:
        raise TargetRefusedError("refused")

    monkeypatch.setattr(OpenVinoTarget, "compile", fail)
    with pytest.raises(TargetRefusedError):
        compile_bundle(bundle, "openvino")
    assert listing(bundle.path) == before


def test_something_else_in_an_engines_place_is_left_as_it_is(bundle: Bundle) -> None:
    (bundle.path / "engines" / "openvino-cpu" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        compile_bundle(bundle, "openvino")
    assert (bundle.path / "engines" / "openvino-cpu" / "notes.txt").read_text() == "mine"


def test_engines_that_lie_elsewhere_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "engines").rename(tmp_path / "elsewhere")
    (bundle.path / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="engines are outside the bundle"):
        compile_bundle(bundle, "openvino", name="new")
    with pytest.raises(BundleError, match="symbolic link"):
        load_engine(bundle, "openvino-cpu")


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 200, "a\n"])
def test_an_engine_has_a_plain_name(name: str, bundle: Bundle) -> None:
    with pytest.raises(SpecError, match="invalid engine name"):
        compile_bundle(bundle, "onnxruntime", name=name)


def place_elsewhere(location: str) -> Callable[[Path], None]:
    """Let an engine's graph read a file of this name, and let its manifest agree."""

    def change(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        files = [record_file(folder / name).model_dump() for name in ("model.onnx", "weights.bin")]
        edit(files=files)(folder)

    return change


@pytest.mark.parametrize("location", ["../../model.safetensors", "/etc/passwd", "elsewhere.bin"])
def test_an_engine_reads_its_own_files_only(location: str, bundle: Bundle) -> None:
    folder = bundle.path / "engines" / "onnxruntime-cpu"
    (folder / "elsewhere.bin").symlink_to("/etc/passwd")  # beside it, and not in its manifest
    place_elsewhere(location)(folder)
    with pytest.raises(BundleError, match="refers to data outside its engine's files"):
        load_engine(bundle, "onnxruntime-cpu")


def named(*names: str) -> Callable[[Path], None]:
    """Give an engine files of these names, each with the content of its first file or a new one."""

    def change(folder: Path) -> None:
        first = json.loads((folder / "manifest.json").read_text())["files"][0]["file"]
        content = (folder / first).read_bytes()
        for name in names:
            if not (folder / name).exists():
                (folder / name).write_bytes(content)
        edit(files=[record_file(folder / name).model_dump() for name in names])(folder)

    return change


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("onnxruntime", ("model.bin", "weights.bin")),
        ("onnxruntime", ("weights.bin", "model.onnx")),
        ("onnxruntime", ("weights.bin",)),
        ("onnxruntime", ("model.onnx", "weights.bin", "more.bin")),
        ("openvino", ("model.bin",)),
        ("openvino", ("model.xml", "model.bin")),
        ("openvino", ("model.blob", "model.bin")),
    ],
)
def test_an_engine_has_the_files_that_its_target_writes(target: str, names: tuple[str, ...], bundle: Bundle) -> None:
    """A graph is judged by its file's name: under another one, a runtime would read it unseen."""
    named(*names)(bundle.path / "engines" / f"{target}-cpu")
    with pytest.raises(BundleError, match=f"has files that {target} does not write"):
        run_engine(bundle, get_target(target), f"{target}-cpu")
    with pytest.warns(UserWarning, match="an engine is left out"):
        assert f"{target}-cpu" not in {each.name for each in candidates(bundle, None)}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_engine_names_no_shapes_unless_its_target_does(target: str, bundle: Bundle) -> None:
    """It is compared on the shapes of its profiles only: one wrong elsewhere would pass."""
    profile = Profile.parse("batch=1,sequence=1").model_dump()
    edit(profiles=[profile])(bundle.path / "engines" / f"{target}-cpu")
    with pytest.raises(BundleError, match=f"has optimization profiles, and {target} has none"):
        run_engine(bundle, get_target(target), f"{target}-cpu")
    edit(profiles=[profile] * 65)(bundle.path / "engines" / f"{target}-cpu")
    with pytest.raises(BundleError, match="at most 64 items"):
        load_engine(bundle, f"{target}-cpu")


def test_a_file_of_another_size_is_refused_unread(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(bundle.path / "engines" / "openvino-cpu" / "model.blob", 1 << 40)  # sparse; to read it takes minutes
    monkeypatch.setattr("funnel_export.bundle.engine.record_file", lambda *_: pytest.fail("it was read"))
    with pytest.raises(BundleError, match=f"{1 << 40} bytes"):
        load_engine(bundle, "openvino-cpu")


OPTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ort: no such option": ("onnxruntime", {"fast": "1"}, "these options of ONNX Runtime are not allowed\n  got: fast"),
    "ort: another kind": ("onnxruntime", {"intra_op_num_threads": "many"}, "intra_op_num_threads.*'many'"),
    "ort: no such level": ("onnxruntime", {"graph_optimization_level": "most"}, "'basic', 'extended' or 'all'"),
    "ort: profiles": ("onnxruntime", {}, "no optimization profiles"),
    "openvino: no such property": (
        "openvino",
        {"FAST": "1"},
        "these options of OpenVINO.* are not allowed\n  got: FAST",
    ),
    "openvino: one to read only": ("openvino", {"FULL_DEVICE_NAME": "x"}, "are not allowed"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_honoured_are_refused_by_name(case: str, bundle: Bundle) -> None:
    target, options, message = OPTIONS[case]
    profiles = ["batch=1,sequence=1"] if "profiles" in case else []
    with pytest.raises(SpecError, match=message):
        compile_bundle(bundle, target, options=options, profiles=profiles, name="new")
    assert engine_names(bundle) == ["onnxruntime-cpu", "openvino-cpu"]


def test_a_value_that_a_runtime_refuses_is_its_refusal(bundle: Bundle) -> None:
    with pytest.raises(FunnelExportError, match="number of streams from str: many"):
        compile_bundle(bundle, "openvino", options={"NUM_STREAMS": "many"}, name="new")


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("openvino", {"CACHE_DIR": "cache"}, "are not allowed\n  got: CACHE_DIR"),
        ("openvino", {"WEIGHTS_PATH": "/etc/passwd"}, "are not allowed\n  got: WEIGHTS_PATH"),
        ("openvino", {"INFERENCE_NUM_THREADS": 100_000}, "too many threads"),
        ("onnxruntime", {"ep.context_enable": "1"}, "are not allowed\n  got: ep.context_enable"),
        ("onnxruntime", {"session.collect_node_memory_stats_to_file": "stats"}, "are not allowed"),
        ("onnxruntime", {"session.moe.offload.derived_cache_dir": "cache"}, "are not allowed"),
        ("onnxruntime", {"session.optimized_model_external_initializers_file_name": "x"}, "are not allowed"),
        ("onnxruntime", {"user_compute_stream": "140000000000"}, "are not allowed"),
        ("onnxruntime", {"fast": 1}, "are not allowed"),
        ("onnxruntime", {"intra_op_num_threads": 100_000}, "less than or equal to"),
        ("onnxruntime", {"provider": "tpu"}, "provider: Input should be 'cpu' or 'cuda'"),
    ],
)
def test_options_of_a_manifest_are_checked_as_those_of_a_build(
    target: str, options: dict[str, Any], message: str, bundle: Bundle
) -> None:
    with pytest.raises(SpecError, match=message):
        compile_bundle(bundle, target, options=options, name="new")
    edit(options=options)(bundle.path / "engines" / f"{target}-cpu")
    with pytest.raises(SpecError, match=message):
        run_engine(bundle, get_target(target), f"{target}-cpu")
    before = set(Path.cwd().iterdir())
    with pytest.warns(UserWarning, match="an engine is left out"):
        found = {each.name for each in candidates(bundle, None)}
    assert found == {"onnxruntime", "openvino", "onnxruntime-cpu", "openvino-cpu"} - {f"{target}-cpu"}
    assert set(Path.cwd().iterdir()) == before


def test_values_that_no_runtime_takes_are_refused(bundle: Bundle) -> None:
    for options in ({"intra_op_num_threads": 2**31}, {"a.b": [1]}, {"session.intra_op_thread_affinities": "x"}):
        with pytest.raises(FunnelExportError):
            compile_bundle(bundle, "onnxruntime", options={"intra_op_num_threads": 2, **options}, name="new")
    assert engine_names(bundle) == ["onnxruntime-cpu", "openvino-cpu"]


def test_options_are_recorded_and_hold_when_the_engine_is_loaded(bundle: Bundle) -> None:
    ort = {"intra_op_num_threads": "1", "session.intra_op.allow_spinning": "0"}
    engine = compile_bundle(bundle, "onnxruntime", options=ort, name="one-thread")
    assert engine.manifest.options == {"intra_op_num_threads": 1, "session.intra_op.allow_spinning": "0"}
    session: Any = get_target("onnxruntime").load(bundle.model, engine=load_engine(bundle, "one-thread"))
    settings = session._session.get_session_options()
    assert settings.intra_op_num_threads == 1
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"

    compile_bundle(bundle, "openvino", options={"INFERENCE_NUM_THREADS": 1}, name="one")
    engine = load_engine(bundle, "one")
    assert engine.manifest.options == {"INFERENCE_NUM_THREADS": 1}
    session = get_target("openvino").load(bundle.model, engine=engine)
    assert session._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_model_optimised_for_this_processor_is_refused_on_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_bundle(bundle, "onnxruntime", options={"graph_optimization_level": "all"}, name="exact")
    open_engine(bundle, "exact")
    monkeypatch.setattr("funnel_export.targets.onnxruntime.processor", lambda: "Z80")
    with pytest.raises(BundleError, match="this is CPUExecutionProvider, Z80"):
        open_engine(bundle, "exact")
    open_engine(bundle, "onnxruntime-cpu")  # made for any


def test_a_blob_that_openvino_does_not_read_is_refused(bundle: Bundle) -> None:
    """Its manifest agrees with it, as after a build that went wrong."""
    folder = bundle.path / "engines" / "openvino-cpu"
    (folder / "model.blob").write_bytes(b"not a blob")
    edit(files=[record_file(folder / "model.blob").model_dump()])(folder)
    with pytest.raises(TargetRefusedError, match=r"(?s)OpenVINO refused its own blob.*compile the bundle again"):
        run_engine(bundle, OpenVinoTarget(), "openvino-cpu")
