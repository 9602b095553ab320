"""`evaluate` on the command line."""

import json
from pathlib import Path

import pytest
from command_line import run
from corpora import bundle_of, checkpoint_of, corpus, ids_of, save_lines
from exported import FEATURES, Recipe

from funnel_export import evaluate
from funnel_export.quality.quality_report import QualityReport

RECIPE = Recipe()
LAST = Recipe(logits="last")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(RECIPE, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("data"), ids_of())


def test_tables(model: Path, data: Path) -> None:
    done = run("evaluate", model, "--data", data, "--funnel", "1:3:2", "--length", 16)
    assert (done.returncode, done.stderr) == (0, "")
    head, sizes, *lines = done.stdout.splitlines()
    assert head == f"{model}: funnel 1:3:2, in eager on cpu, float32"
    assert sizes.startswith("5 documents, 73 tokens, ")
    report = evaluate(model, data, funnel="1:3:2", length=16)
    assert report.distance is not None
    loss = next(line for line in lines if line.startswith("loss, nats"))
    for measure in (report.measures.loss, report.distance.loss):
        assert f"{measure.value:.4f} (" in loss
    for name in ("perplexity", "bits a byte", "accuracy", "KL from dense", "same best as dense"):
        assert any(line.startswith(name) for line in lines)
    assert "by phase: the number of the token that predicts, modulo 2" in lines
    assert any(line.split()[:2] == ["4-7", "24"] for line in lines)
    assert "95 % bootstrap intervals over documents, which are too narrow for only 5 of them" in lines


def test_one_json_object_and_a_file(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = run("evaluate", model, "--data", data, "--max-tokens", 20, "--json", "--out", out)
    assert done.returncode == 0
    printed, written = (QualityReport.model_validate_json(text) for text in (done.stdout, out.read_text()))
    assert printed == written
    assert (printed.scored, printed.documents, printed.cut, printed.dense) == (20, 2, 1, None)
    again = run("evaluate", model, "--data", data, "--max-documents", 1, "--out", out)
    assert again.returncode == 0
    assert "one document: no intervals" in again.stdout
    assert json.loads(out.read_text())["scored"] == 11


def test_a_file_that_is_not_a_report_is_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    done = run("evaluate", model, "--data", data, "--out", out)
    assert done.returncode == 2
    assert "is not a report of evaluate; it was left unchanged" in done.stderr
    assert out.read_text() == "mine"


def test_only_a_report_of_evaluate_is_replaced(data: Path, tmp_path: Path) -> None:
    """Manifests and other reports have a version too."""
    bundle = bundle_of(RECIPE, tmp_path / "bundle")
    assert run("compile", bundle, "--target", "onnxruntime", "--name", "mine").returncode == 0
    assert run("check", bundle, "--target", "onnxruntime", "--max-length", 2).returncode == 0
    files = [bundle / "manifest.json", bundle / "engines/mine/manifest.json", bundle / "reports/parity.json"]
    before = [file.read_bytes() for file in files]
    for file in files:
        done = run("evaluate", bundle, "--data", data, "--out", file)
        assert done.returncode == 2
        assert "is not a report of evaluate; it was left unchanged" in done.stderr
    assert [file.read_bytes() for file in files] == before


def test_columns_of_the_data(model: Path, tmp_path: Path) -> None:
    data = save_lines(tmp_path / "data.jsonl", [{"body": "w5 w6"}, {"body": ""}, {"body": "w7"}])
    done = run("evaluate", model, "--data", data, "--text-column", "body")
    assert "2 documents, 3 tokens" in done.stdout
    assert "documents without tokens: 1" in done.stdout
    assert "has no column 'text'" in run("evaluate", model, "--data", data).stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--funnel", "1:9:2"), 2, "beyond the model's layers"),
        (("--funnel", "1:3:2", "--lookahead"), 2, "cannot generate text"),
        (("--pooling", "max"), 2, "pooling without a funnel"),
        (("--target", "onnxruntime"), 2, "a checkpoint runs in PyTorch only"),
        (("--engine", "mine"), 2, "a checkpoint runs in PyTorch only"),
        (("--dense",), 2, "the model is the dense model itself"),
        (("--length", "513"), 2, "length exceeds max_position_embeddings"),
        (("--split", "test"), 2, "files have no splits"),
        (("--device", "cuda"), 3, "PyTorch finds no GPU"),
    ],
)
def test_errors(
    options: tuple[str, ...], code: int, message: str, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run("evaluate", model, "--data", data, *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_errors_of_bundles(data: Path, tmp_path: Path) -> None:
    bundle = bundle_of(RECIPE, tmp_path / "bundle")
    for options, message in (
        (("--funnel", "none"), "a bundle's funnel is fixed"),
        (("--target", "nonesuch"), "unknown target"),
        (("--engine", "nonesuch"), "no such engine"),
    ):
        done = run("evaluate", bundle, "--data", data, *options)
        assert done.returncode == 2
        assert message in done.stderr
    done = run("evaluate", bundle_of(LAST, tmp_path / "last"), "--data", data)
    assert "logits of each row's last token only" in done.stderr


def test_models_that_predict_nothing_or_have_no_tokenizer(data: Path, tmp_path: Path) -> None:
    done = run("evaluate", checkpoint_of(FEATURES, tmp_path / "model"), "--data", data)
    assert done.returncode == 2
    assert "predicts neither tokens nor labels" in done.stderr
    done = run("evaluate", RECIPE.checkpoint(), "--data", data)
    assert done.returncode == 2
    assert "the checkpoint has no tokenizer" in done.stderr
