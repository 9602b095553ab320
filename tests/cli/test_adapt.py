"""`adapt` on the command line, in one process and in two."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import FUNNEL, save_texts
from command_line import run
from models import save_tiny_checkpoint
from safetensors.torch import load_file
from tokenizers_of_words import save_tokenizer

from funnel_export import adapt
from funnel_export.commands.adapt import REPORT, STATE
from funnel_export.spec.choices import Device, Dtype, Recovery, Task
from funnel_export.spec.training import LEARNING_RATES, Objective, Part
from funnel_export.training.adapt_report import AdaptReport

SHORT = ("--length", 24, "--steps", 3, "--batch-size", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("data") / "texts.jsonl")


def test_text(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("adapt", model, out, "--data", data, "--funnel", FUNNEL, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    head, trained, _, losses, closed, *rest = done.stdout.splitlines()
    assert head == f"{out}: funnel 1:3:2, recovery delta"
    assert re.fullmatch(
        r"[\d,]+ weights \(lora\) trained on 276 tokens, 874 different ones, in 3 steps: objective kl", trained
    )
    number = r"\d\.\d{3}"
    assert re.fullmatch(f"loss on 46 held-out tokens, nats: dense {number}, before {number}, after {number}", losses)
    assert closed.endswith("% of the distance to the dense model closed")
    assert len(rest) == 1
    assert re.fullmatch(r"\d+ s on cpu", rest[0])


def test_json(model: Path, data: Path, tmp_path: Path) -> None:
    options = ("--train", "all", "--objective", "targets", "--stride", 2, "--stride", 4, "--accumulation", 2)
    out = tmp_path / "out"
    done = run("adapt", model, out, "--data", data, "--funnel", FUNNEL, *SHORT, *options, "--seed", 3, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed, written = json.loads(done.stdout), json.loads((out / REPORT).read_text())
    assert printed == written
    training = AdaptReport.model_validate(written).training
    names = ("part", "objective", "strides", "accumulation", "seed", "rank", "epochs")
    assert [training[name] for name in names] == ["all", "targets", [2, 4], 2, 3, 32, 1.0]


def test_errors(model: Path, data: Path, tmp_path: Path) -> None:
    command = ("adapt", model, tmp_path / "out", "--data", data, "--funnel", FUNNEL, *SHORT)
    done = run(*command, "--train", "maps", "--json")
    assert done.returncode == 2
    assert "the funnel has no maps" in done.stderr
    assert json.loads(done.stdout)["error"]["hint"].startswith("--recovery linear")
    assert run("adapt", model, tmp_path / "out").returncode == 2
    assert run(*command, "--epochs", 0).returncode == 2
    assert not (tmp_path / "out").exists()


def test_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    shown = run("adapt", "--help").stdout
    for values in (Objective, Part, Dtype, Device, Recovery, ("auto", *Task)):
        assert f"<{'|'.join(values)}>" in shown
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    assert f"[default: ({rates})]" in shown


@pytest.mark.slow
def test_two_processes_train_together(model: Path, data: Path, tmp_path: Path) -> None:
    """They print one result: that of one process which reads twice the rows in each step."""
    out = tmp_path / "out"
    launch = (
        "torch.distributed.run",
        "--nproc-per-node",
        2,
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    )
    command = ("adapt", model, out, "--data", data, "--funnel", FUNNEL, *SHORT, "--dtype", "float32", "--json")
    arguments = map(str, (sys.executable, "-m", *launch, "-m", "funnel_export", *command))
    done = subprocess.run(
        list(arguments), capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    printed, written = json.loads(done.stdout), json.loads((out / REPORT).read_text())
    assert printed == written
    settings = {"steps": 3, "batch_size": 8}
    options: dict[str, Any] = {"funnel": FUNNEL, "length": 24, "device": "cpu", "dtype": "float32"}
    alone = adapt(model, tmp_path / "alone", data=data, training=settings, **options)
    assert (printed["steps"], printed["seen"]) == (alone.steps, alone.seen) == (3, 2 * 276)
    assert printed["losses"] == pytest.approx(alone.losses.model_dump(), abs=1e-5)
    assert [point["training"] for point in printed["history"]] == pytest.approx([alone.history[0].training], rel=1e-5)
    one, other = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "alone"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5)
    assert not (out / STATE).exists()
