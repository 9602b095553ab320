"""A full disk: one error that says so, with exit code 2; nothing half-written, nothing damaged."""

from pathlib import Path
from typing import Any

import pytest
from mounting import run_mounted


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_mounted(Path(__file__).parents[1] / "full.py", tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("job", ["export, copies", "onnxruntime, told", "openvino, told", "package, told"])
def test_what_does_not_fit_is_refused_before_any_work(job: str, result: dict[str, Any]) -> None:
    found = result[job]
    assert "not enough space on the disk\n  got: 188,416 bytes free in /" in found["error"]
    assert "wanted: at least " in found["error"]
    assert (found["code"], found["same"]) == (2, True)


@pytest.mark.parametrize(
    ("job", "file"),
    [
        ("export, links", "model.onnx"),
        ("export, new", "model.onnx"),
        ("onnxruntime", "model.onnx"),
        ("openvino", "model.blob"),
        ("package", "model.safetensors"),
        ("report", "report.html"),
        ("demo", "demo.json"),
        ("a library", ""),  # safetensors has removed its file
    ],
)
def test_a_disk_that_becomes_full(job: str, file: str, result: dict[str, Any]) -> None:
    found = result[job]
    assert "no space left for the output\n  got: No space left on device" in found["error"]
    assert f"{file}; " in found["error"]
    assert " bytes free in /" in found["error"]
    assert (found["code"], found["same"]) == (2, True)


@pytest.mark.parametrize(
    ("job", "file"), [("onnxruntime", "weights.bin"), ("openvino", "model.blob"), ("export", "model.safetensors")]
)
def test_a_limit_for_files(job: str, file: str, result: dict[str, Any]) -> None:
    """OpenVINO loses what a stream raises: its blob was cut off, and passed for whole."""
    found = result[f"{job}, limited"]
    assert f"{file}; " in found["error"]
    assert "File too large" in found["error"]
    assert "ulimit -f" in found["error"]
    assert (found["code"], found["same"]) == (2, True)


def test_a_result_is_given_even_if_it_cannot_be_kept(result: dict[str, Any]) -> None:
    assert result["check"]["passed"]
    assert "could not be kept in the bundle: no space left for the output" in result["check"]["warning"]
