"""`polygraphy` reads, runs and compares a bundle."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import LINKED, Case
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

POLYGRAPHY = Path(sys.executable).parent / "polygraphy"


def polygraphy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command, whatever it answers."""
    return subprocess.run([POLYGRAPHY, *arguments], capture_output=True, text=True, check=False)


def test_inspect(bundles: Path) -> None:
    done = polygraphy("inspect", "model", bundles / "text-generation-funnel" / "model.onnx", "--show", "layers")
    assert done.returncode == 0, done.stderr
    assert "{input_ids [dtype=int64, shape=('batch_size', 'sequence_length')]" in done.stdout
    assert "{funnel.pooled [dtype=float32" in done.stdout
    assert "{funnel.recovered [dtype=float32" in done.stdout


def test_inspect_needs_an_option_for_links(bundles: Path) -> None:
    linked = bundles / LINKED / "model.onnx"
    refused = polygraphy("inspect", "model", linked)
    assert refused.returncode != 0
    assert "multiple hard links" in refused.stdout + refused.stderr
    assert polygraphy("inspect", "model", linked, "--ignore-external-data").returncode == 0


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (1e-3, False)])
def test_run_compares_with_pytorch(bundles: Path, tmp_path: Path, shift: float, passes: bool) -> None:
    case = Case.read(bundles, LINKED)
    row = next(i for i, mask in enumerate(case.inputs("left")["attention_mask"]) if mask.all())
    logits = case.rows()[row][None].astype(np.float32) + np.float32(shift)
    expected = RunResults()
    expected.add([{"logits": logits}], runner_name="eager PyTorch")
    expected.save(tmp_path / "expected.json")
    save_json([{name: value[[row]] for name, value in case.inputs("left").items()}], tmp_path / "inputs.json")
    files = ("--load-inputs", tmp_path / "inputs.json", "--load-outputs", tmp_path / "expected.json")
    limits = ("--atol", "1e-4", "--rtol", "0")
    done = polygraphy("run", case.folder / "model.onnx", "--onnxrt", *files, *limits)
    rate = "100.00%" if passes else "0.00%"
    assert f"Pass Rate: {rate}" in done.stdout, done.stdout + done.stderr
    assert (done.returncode == 0) is passes
