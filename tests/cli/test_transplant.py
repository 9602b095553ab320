"""`transplant` on the command line."""

import json
from pathlib import Path

import pytest
import torch
from command_line import run
from models import save_tiny_checkpoint
from safetensors.torch import load_file, save_file

from funnel_export import FunnelSpec
from funnel_export.commands.transplant import REPORT
from funnel_export.quality.transplant_report import TransplantReport

SPEC = FunnelSpec.parse("1:3:2", recovery="linear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `adapted`, whose maps are fitted, `base`, and `instruct`, of which one weight is 10 % larger."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_checkpoint(folder / "adapted", maps=SPEC)
    save_tiny_checkpoint(folder / "base")
    file = save_tiny_checkpoint(folder / "instruct") / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"] *= torch.tensor(1.1)
    save_file(weights, file, {"format": "pt"})
    return folder


def test_text(folder: Path, tmp_path: Path) -> None:
    models = ("--base", folder / "base", "--instruct", folder / "instruct")
    done = run("transplant", folder / "adapted", tmp_path / "out", *models)
    assert (done.returncode, done.stderr) == (0, "")
    head, _, names, _, adapted, instruct = done.stdout.splitlines()
    assert head == f"{tmp_path / 'out'}: funnel 1:3:2, recovery linear, 46 weights added up, 4 tensors copied"
    assert names.split()[:5] == ["distance", "from", "the", "base", "matrices"]
    assert adapted.split() == ["adapted", "0", "%", "0", "%", "0", "of", "46", "0", "%", "–"]
    assert instruct.split()[5:] == ["1", "of", "46", "10", "%", "model.layers.1.mlp.up_proj.weight"]


def test_json(folder: Path, tmp_path: Path) -> None:
    models = ("--base", folder / "base", "--instruct", folder / "instruct")
    done = run("transplant", folder / "adapted", tmp_path / "out", *models, "--json")
    assert done.returncode == 0
    printed, written = json.loads(done.stdout), json.loads((tmp_path / "out" / REPORT).read_text())
    assert printed == written
    assert TransplantReport.model_validate(written).instruct_from_base.changed == 1


def test_errors(folder: Path, tmp_path: Path) -> None:
    models = ("--base", folder / "base", "--instruct", folder / "base")
    done = run("transplant", folder / "adapted", tmp_path / "out", *models, "--json")
    assert done.returncode == 2
    assert "nothing to transplant" in done.stderr
    assert json.loads(done.stdout)["error"]["got"] == "an instruct model with the same weights as the base model"
    assert run("transplant", folder / "adapted", tmp_path / "out").returncode == 2
    assert not (tmp_path / "out").exists()
