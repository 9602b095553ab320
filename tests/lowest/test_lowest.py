"""The lower bounds of every dependency are true: the command line works with all of them at once. `make lowest`."""

import json
import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from funnel_export.commands.demo import make_checkpoint

EXTRAS = ("", "adapt", "onnxruntime", "openvino", "quality", "triton")
"""The extras that this environment has; "" stands for none."""
TARGETS = ("onnxruntime", "openvino")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def wanted(distribution: str) -> list[Requirement]:
    """What a distribution needs here."""
    found = map(Requirement, requires(distribution) or [])
    return [each for each in found if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in EXTRAS)]


BOUNDS = {each.name: each for name in ("funnel-export", "optimum-funnel") for each in wanted(name) if each.specifier}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_lowest_version_is_here(name: str) -> None:
    (bound,) = BOUNDS[name].specifier
    assert bound.operator == ">="
    installed = Version(Version(version(name)).public)
    if name == "torch" and "UV_CONSTRAINT" in os.environ and installed > Version(bound.version):
        pytest.skip(f"asked for torch {installed} in place of the lowest, {bound.version}")
    assert installed == Version(bound.version)


def run(program: str, *arguments: object) -> str:
    """Run a program of this environment; what it prints."""
    command = [Path(sys.executable).parent / program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result(*arguments: object) -> dict[str, Any]:
    """The object that a command prints with --json; it prints nothing beside it."""
    return json.loads(run("funnel-export", *arguments, "--json"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """A bundle with an engine of every target that is here."""
    out = checkpoint.parent / "bundle"
    assert result("export", checkpoint, out, "--funnel", "3:9:2", "--task", "text-generation")["dtype"] == "float32"
    for target in TARGETS:
        result("compile", out, "--target", target)
    return out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("opset", [18, 22])
def test_export(dtype: str, opset: int, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--funnel", "3:9:2", "--pooling", "max", "--dtype", dtype, "--opset", opset)
    assert result("export", checkpoint, tmp_path / "out", *options)["opset"] == opset


def test_check_and_report(bundle: Path) -> None:
    report = result("check", bundle, "--max-length", 24)
    assert report["passed"]
    checked = {(each["target"], each["engine"]) for each in report["targets"]}
    assert checked == {(name, engine) for name in TARGETS for engine in (None, f"{name}-cpu")}
    assert not any(each["boundaries_missing"] for each in report["targets"])
    run("funnel-export", "report", bundle)
    assert {"report.md", "report.html", "boundaries.png"} <= {file.name for file in (bundle / "reports").iterdir()}


def test_bench(bundle: Path) -> None:
    options = ("--length", 16, "--rounds", 6, "--pytorch", "eager", "--target", "onnxruntime")
    assert result("bench", bundle, *options)["rows"]


def test_package(bundle: Path, tmp_path: Path) -> None:
    result("package", bundle, tmp_path / "models", "--name", "funnel")
    assert 'name: "funnel"' in (tmp_path / "models" / "funnel" / "config.pbtxt").read_text()


def test_inspect_and_graph(bundle: Path) -> None:
    result("inspect", bundle)
    assert "funnel.pooled" in run("funnel-export", "inspect", "--graph", bundle)


def test_generate(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert result("export", checkpoint, out, "--funnel", "3:9:2")["task"] == "text-generation-with-past"
    for target in TARGETS:
        found = result("generate", out, "--target", target, "--prompt", "The", "--max-new-tokens", 4, "--greedy")
        assert len(found["tokens"]) == 4


def test_evaluate(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "The with statement"}\n{"text": "An iterator"}\n')
    funnel = result("evaluate", checkpoint, "--data", data, "--funnel", "3:9:2")
    for target in TARGETS:
        found = result("evaluate", bundle, "--data", data, "--target", target)
        assert abs(found["measures"]["loss"]["value"] - funnel["measures"]["loss"]["value"]) < 1e-4


def test_adapt(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "The with statement is used to wrap a block."}\n' * 8)
    fitted, adapted = tmp_path / "fitted", tmp_path / "adapted"
    result("fit", checkpoint, fitted, "--data", data, "--funnel", "3:9:2", "--length", 16)
    options = ("--steps", 2, "--batch-size", 2, "--length", 16, "--gradient-checkpointing")
    assert result("adapt", fitted, adapted, "--data", data, *options)["steps"] == 2
    assert result("export", adapted, tmp_path / "out")["dtype"] == "float32"


def test_optimum(checkpoint: Path, tmp_path: Path) -> None:
    run("optimum-cli", "export", "funnel", checkpoint, tmp_path / "out", "--funnel", "3:9:2")
    assert (tmp_path / "out" / "manifest.json").is_file()
