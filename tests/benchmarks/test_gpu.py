"""The benchmark for GPUs: what it has measured stays, and one step that fails costs no other."""

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest

from funnel_export.errors import SpecError, TargetUnavailableError
from funnel_export.spec.choices import Task


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--shape", "tiny", *arguments])
    gpu.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_second_run_goes_on_where_the_first_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "gpu.json"
    strides: list[int] = []

    def latency(folder: Path, options: Any, stride: int, task: Task) -> dict[str, Any]:
        assert task is Task.TEXT_GENERATION
        strides.append(stride)
        if len(strides) == 1:
            raise SpecError("the first step fails")
        return {"report": stride}

    monkeypatch.setattr(gpu, "latency", latency)
    first = run(monkeypatch, out, "--device", "cpu", "--steps", "S=2", "S=4")
    assert first["S=2"]["error"] == "the first step fails"
    assert first["S=4"]["report"] == 4
    assert first["S=4"]["conditions"]["torch"]
    monkeypatch.setattr(gpu, "parity", lambda folder: {"small": True})
    second = run(monkeypatch, out, "--device", "cpu", "--steps", "parity", "S=2", "S=4")
    assert strides == [2, 4, 2]
    assert second["S=4"] == first["S=4"]
    assert (second["S=2"]["report"], second["parity"]["small"]) == (2, True)


def test_without_a_gpu_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise TargetUnavailableError("there is no NVIDIA driver here")

    monkeypatch.setattr(gpu, "find_gpu", find)
    with pytest.raises(TargetUnavailableError):
        run(monkeypatch, tmp_path / "gpu.json", "--steps", "parity")
    assert not list(tmp_path.iterdir())
