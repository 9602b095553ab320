"""Candidates: everything that runs on this machine, or the requested targets and engines."""

import shutil
from pathlib import Path

import pytest
from breaks import own
from command_line import run
from exported import Recipe
from tamper import rewrite_json

from funnel_export import Bundle, Quantization, bench, check, compile_bundle
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.targets.onnxruntime import CUDA, OnnxRuntimeTarget
from funnel_export.verify.candidates import candidates


@pytest.mark.parametrize(
    ("quantization", "names"), [(None, ["onnxruntime", "openvino"]), (Quantization(bits=4), ["openvino"])]
)
def test_a_gpu_does_not_run_quantized_weights_in_bfloat16(
    quantization: Quantization | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeTarget, "provider", lambda _: CUDA)
    bundle = Recipe(dtype="bfloat16", quantization=quantization).bundle()
    assert [candidate.name for candidate in candidates(bundle, None, None)] == names
    if quantization is not None:
        with pytest.raises(TargetUnavailableError, match="no kernel that dequantizes to bfloat16"):
            list(candidates(bundle, ["onnxruntime"], None))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with three engines."""
    bundle = own(tmp_path_factory.mktemp("engines"))
    compile_bundle(bundle, "onnxruntime", name="one")
    compile_bundle(bundle, "onnxruntime", name="two")
    compile_bundle(bundle, "openvino", name="vino")
    return bundle


@pytest.mark.parametrize(
    ("targets", "engines", "names"),
    [
        (None, None, ["onnxruntime", "one", "two", "openvino", "vino"]),
        (["openvino"], None, ["openvino", "vino"]),
        (None, ["two"], ["two"]),
        (None, ["vino", "one", "vino"], ["vino", "one"]),
        (["openvino"], ["two"], ["openvino", "two"]),
        (["onnxruntime"], ["two"], ["onnxruntime", "two"]),
        (None, [], []),
    ],
)
def test_requested_targets_and_engines(
    targets: list[str] | None, engines: list[str] | None, names: list[str], compiled: Bundle
) -> None:
    assert [candidate.name for candidate in candidates(compiled, targets, engines)] == names


def test_the_command_compares_one_engine(compiled: Bundle) -> None:
    done = run("check", compiled.path, "--engine", "two", "--max-length", 2)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:] if line and not line.startswith("l")]
    assert set(rows) == {"two"}


@pytest.mark.parametrize("command", [check, bench])
def test_an_unknown_engine_is_refused_by_name(command: object, compiled: Bundle) -> None:
    with pytest.raises(SpecError, match=r"(?s)no such engine.*got: 'three'.*wanted: any of one, two, vino"):
        command(compiled, engines=["two", "three"])  # type: ignore[operator]


def test_a_bundle_without_engines_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"(?s)no such engine.*the bundle has none.*funnel-export compile"):
        check(own(tmp_path), engines=["one"])


def test_an_engine_of_a_graph_that_the_bundle_lacks_is_refused(compiled: Bundle, tmp_path: Path) -> None:
    copy = own(tmp_path)
    shutil.copytree(compiled.path / "engines", copy.path / "engines")
    rewrite_json(copy.path / "engines" / "two" / "manifest.json", lambda manifest: manifest.update(graph="middle"))
    message = r"(?s)compiled from another bundle's graph.*two, compiled from the graph middle.*an engine of model"
    with pytest.raises(SpecError, match=message):
        list(candidates(copy, None, ["two"]))


@pytest.mark.parametrize(
    ("made", "folder", "message"),
    [
        ("one", "model-one", "two engines have the same name in reports"),
        ("vino", "model-one", "two engines have the same name in reports"),
        ("one", "model-eager", "the engine has the name of a runtime"),
        ("one", "model-onnxruntime", "the engine has the name of a runtime"),
    ],
)
def test_no_engine_has_the_results_of_another(
    made: str, folder: str, message: str, compiled: Bundle, tmp_path: Path
) -> None:
    """Reports have an engine's name without the role of its graph; eager PyTorch is never judged."""
    copy = own(tmp_path)
    shutil.copytree(compiled.path / "engines" / "one", copy.path / "engines" / "one")
    shutil.copytree(compiled.path / "engines" / made, copy.path / "engines" / folder)
    with pytest.raises(BundleError, match=message):
        list(candidates(copy, ["onnxruntime", "openvino"]))
    with pytest.warns(UserWarning, match=f"(?s)an engine is left out: .*{message}"):
        found = [candidate.name for candidate in candidates(copy, None)]
    assert sorted(found) == ["one", "onnxruntime", "openvino"]


def test_no_engine_gets_the_name_of_a_runtime_in_reports(tmp_path: Path) -> None:
    for name in ("model-eager", "model-openvino"):
        with pytest.raises(SpecError, match="the engine has the name of a runtime"):
            compile_bundle(own(tmp_path / name), "onnxruntime", name=name)


def test_a_damaged_engine_is_refused_if_requested(compiled: Bundle, tmp_path: Path) -> None:
    copy = own(tmp_path)
    shutil.copytree(compiled.path / "engines", copy.path / "engines")
    next((copy.path / "engines" / "two").glob("*.onnx")).write_bytes(b"changed")
    with pytest.raises(BundleError, match="not the one that was built"):
        list(candidates(copy, None, ["two"]))
    assert [candidate.name for candidate in candidates(copy, None, ["one"])] == ["one"]
    (copy.path / "engines" / "one" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        list(candidates(copy, None, ["one"]))
