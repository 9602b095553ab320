"""The benchmark for GPUs: what it has measured stays, and one step that fails costs no other."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gpu
import pytest

from funnel_export import Bundle, Quantization
from funnel_export.errors import SpecError, TargetUnavailableError
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--shape", "tiny", *arguments])
    gpu.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_second_run_goes_on_where_the_first_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "gpu.json"
    steps: list[str] = []

    def latency(folder: Path, options: Any, step: str) -> dict[str, Any]:
        steps.append(step)
        if len(steps) == 1:
            raise SpecError("the first step fails")
        return {"report": step}

    monkeypatch.setattr(gpu, "latency", latency)
    first = run(monkeypatch, out, "--device", "cpu", "--steps", "S=2", "S=4")
    assert first["S=2"]["error"] == "the first step fails"
    assert first["S=4"]["report"] == "S=4"
    assert first["S=4"]["conditions"]["torch"]
    monkeypatch.setattr(gpu, "parity", lambda folder: {"small": True})
    second = run(monkeypatch, out, "--device", "cpu", "--steps", "parity", "S=2", "S=4")
    assert steps == ["S=2", "S=4", "S=2"]
    assert second["S=4"] == first["S=4"]
    assert (second["S=2"]["report"], second["parity"]["small"]) == ("S=2", True)


@pytest.mark.slow
def test_what_was_prepared_is_not_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, place = "decode S=2, 4 bits", ["--folder", str(tmp_path / "folder"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--shape", "tiny", "--prepare", "--steps", step, *place])
    gpu.main()
    monkeypatch.setattr(gpu, "export", None)
    timed: list[ExportSpec] = []

    def bench(bundle: Bundle, **_: Any) -> Mock:
        timed.append(bundle.spec)
        return Mock(passed=True, model_dump=Mock(return_value={}))

    monkeypatch.setattr(gpu, "bench", bench)
    run(monkeypatch, tmp_path / "gpu.json", "--prepared", "--steps", step, *place)
    assert [(each.task, each.quantization) for each in timed] == [
        (Task.TEXT_GENERATION_WITH_PAST, Quantization(bits=4))
    ]


def test_without_a_gpu_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise TargetUnavailableError("there is no NVIDIA driver here")

    monkeypatch.setattr(gpu, "find_gpu", find)
    with pytest.raises(TargetUnavailableError):
        run(monkeypatch, tmp_path / "gpu.json", "--steps", "parity")
    assert not list(tmp_path.iterdir())
