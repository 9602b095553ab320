"""`adapt`: models learn, a run that ended early goes on as if it had not, and everything else takes the result."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import FUNNEL, SHORT, TRAINING, patterns, save_classes, save_tags, save_texts
from corpora import save_lines, text_of
from killing import digest
from models import save_tiny_checkpoint
from safetensors.torch import load_file
from tiers import slow_but
from tokenizers_of_words import save_tokenizer
from transformers import (
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2ForTokenClassification,
    Gemma2Model,
    Gemma3ForCausalLM,
    PreTrainedModel,
)

from funnel_export import FunnelSpec, adapt, apply_funnel, check, evaluate, export, fit
from funnel_export.commands.adapt import REPORT, SETTINGS, STATE
from funnel_export.errors import BundleError, CheckpointError, DataError, FunnelExportError, SpecError
from funnel_export.report.quality_text import describe_adapt
from funnel_export.training import running
from funnel_export.training.adapt_report import AdaptReport

LINEAR = FunnelSpec.parse(FUNNEL, recovery="linear")
STRIDES = (2, 3)
WHOLE: dict[str, Any] = TRAINING | {
    "part": "all",
    "accumulation": 2,
    "strides": STRIDES,
    "measure_steps": 3,
    "save_steps": 2,
}
"""Settings of a run with all that a state must hold."""


class Ended(Exception):  # noqa: N818 - it stands for the end of a process
    """Ends a run in the middle."""


def saved(folder: Path, cls: type[PreTrainedModel] = Gemma2ForCausalLM, **options: Any) -> Path:
    """A tiny checkpoint with the tokenizer."""
    checkpoint = save_tiny_checkpoint(folder / "checkpoint", cls, **options)
    save_tokenizer(checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl")


Run = Callable[..., AdaptReport]


@pytest.fixture
def run(checkpoint: Path, texts: Path) -> Run:
    """Adapts the checkpoint, unless told else to the texts, with recovery linear and the settings `WHOLE`."""

    def call(out: Path, **options: Any) -> AdaptReport:
        given = {"data": texts, "funnel": LINEAR, "training": WHOLE} | SHORT | options
        return adapt(given.pop("checkpoint", checkpoint), out, **given)

    return call


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run from its begin to its end."""
    out = tmp_path_factory.mktemp("adapted") / "out"
    adapt(checkpoint, out, data=texts, funnel=LINEAR, training=WHOLE, **SHORT)
    return out


def weights_of(folder: Path) -> bytes:
    """The file of the weights."""
    return (folder / "model.safetensors").read_bytes()


def report_of(folder: Path) -> AdaptReport:
    """The report beside a checkpoint."""
    return AdaptReport.model_validate_json((folder / REPORT).read_text())


def end_at(step: str) -> Callable[..., None]:
    """A progress callback that ends the run at a step."""

    def progress(text: str, _: float | None = None) -> None:
        if text.startswith(step):
            raise Ended

    return progress


def end_early(run: Run, out: Path, step: str = "step 5 ") -> Path:
    """Run to a step. There are states of the steps 2, 4, 6 and the last, and only the last one is kept."""
    with pytest.raises(Ended):
        run(out, progress=end_at(step))
    assert [path.name for path in out.iterdir()] == [STATE]
    assert len(list((out / STATE).glob("checkpoint-*"))) <= 1
    return out / STATE


# What is learned


LEARNED = {
    "kl, all": {"objective": "kl", "part": "all"},
    "kl of some tokens, lora": {"objective": "kl", "part": "lora", "vocabulary": 30},
    "targets, lora": {"objective": "targets", "part": "lora"},
    "hidden, middle": {"objective": "hidden", "part": "middle"},
    "kl, maps": {"objective": "kl", "part": "maps", "learning_rate": None, "maps_learning_rate": 3e-3},
    "targets, all, activations computed again": {"objective": "targets", "part": "all", "checkpointing": True},
}


@pytest.mark.parametrize("settings", LEARNED.values(), ids=LEARNED)
def test_training_lowers_the_objective(
    settings: dict[str, Any], run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path / "out", training=TRAINING | {"steps": 20, "save_steps": 5} | settings)
    assert capfd.readouterr() == ("", "")
    first, last = report.history
    assert (first.step, last.step) == (10, 20)
    assert last.training < 0.97 * first.training
    assert report.losses.dense < report.losses.before
    if settings["objective"] == "targets":
        assert report.losses.after < report.losses.before


def test_the_report(adapted: Path) -> None:
    report = report_of(adapted)
    assert report.funnel == LINEAR.to_dict()
    assert report.training["strides"] == list(STRIDES)
    assert (report.tokens, report.held_out) == (38 * 23, 2 * 23)  # rows of BOS and 22 tokens, which predict 23
    assert report.steps == 7
    # Ten batches are five steps; the tenth has two rows. Then the first two steps of the next epoch.
    assert report.seen == (38 + 2 * 8) * 23
    assert [point.step for point in report.history] == [3, 6, 7]
    assert [point.held_out is None for point in report.history] == [False, False, True]
    text = describe_adapt(report, adapted)
    assert f"{report.seen:,} tokens, 874 different ones, in 7 steps: objective kl" in text
    assert "loss on 46 held-out tokens, nats: dense" in text


def test_the_model_is_measured_with_its_own_stride(run: Run, tmp_path: Path) -> None:
    settings = WHOLE | {"measure_steps": 1, "learning_rate": 1e-12, "maps_learning_rate": 1e-12}
    report = run(tmp_path / "out", training=settings)
    found = [report.losses.after, *(point.held_out for point in report.history)]
    assert found == pytest.approx([report.losses.before] * 8, abs=1e-6)


def test_few_held_out_tokens(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "one", training={"steps": 1}, held_out=1).held_out == 23
    assert run(tmp_path / "two", training={"steps": 1}, held_out=45, tokens=2000).held_out == 23


def test_an_objective_that_is_not_finite_ends_the_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FunnelExportError, match="not finite"):
        run(tmp_path / "out", training=TRAINING | {"part": "all", "learning_rate": 1e30})


# What is saved


def test_the_same_settings_give_the_same_bytes(adapted: Path, run: Run, tmp_path: Path) -> None:
    report = run(tmp_path / "again")
    assert weights_of(tmp_path / "again") == weights_of(adapted)
    assert report.history == report_of(adapted).history
    assert report.losses == report_of(adapted).losses


@pytest.mark.parametrize("step", ["step 2 ", "step 5 ", "writing"])
def test_a_run_goes_on_as_if_it_had_not_ended(step: str, adapted: Path, run: Run, tmp_path: Path) -> None:
    """Before a state is saved, after one, and after the last step."""
    end_early(run, tmp_path / "out", step)
    assert run(tmp_path / "out", resume=True).model_dump(exclude={"seconds"}) == report_of(adapted).model_dump(
        exclude={"seconds"}
    )
    assert weights_of(tmp_path / "out") == weights_of(adapted)
    assert not (tmp_path / "out" / STATE).exists()


def test_a_slow_run_is_saved_by_time(adapted: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LONGEST", 0.0)
    settings = WHOLE | {"save_steps": 100}
    with pytest.raises(Ended):
        run(tmp_path / "out", training=settings, progress=end_at("step 5 "))
    assert [path.name for path in (tmp_path / "out" / STATE).glob("checkpoint-*")] == ["checkpoint-4"]
    run(tmp_path / "out", training=settings, resume=True)
    assert weights_of(tmp_path / "out") == weights_of(adapted)


def test_a_run_of_adapters_goes_on_too(run: Run, tmp_path: Path) -> None:
    settings = WHOLE | {"part": "lora", "rank": 4}
    whole = run(tmp_path / "whole", training=settings)
    with pytest.raises(Ended):
        run(tmp_path / "out", training=settings, progress=end_at("step 5 "))
    assert run(tmp_path / "out", training=settings, resume=True).history == whole.history
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process(checkpoint: Path, texts: Path, run: Run, tmp_path: Path) -> None:
    settings = WHOLE | {"steps": 30}
    options = {"--data": texts, "--funnel": FUNNEL, "--recovery": "linear", "--train": "all", "--length": 24}
    options |= {"--dtype": "float32", "--device": "cpu", "--steps": 30, "--batch-size": 4, "--learning-rate": 3e-3}
    options |= {"--accumulation": 2, "--measure-steps": 3, "--save-steps": 2}
    given = [str(each) for pair in options.items() for each in pair] + [f"--stride={stride}" for stride in STRIDES]
    command = [sys.executable, "-m", "funnel_export", "adapt", str(checkpoint), str(tmp_path / "out"), *given]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob(f"{STATE}/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (
        run(tmp_path / "out", training=settings, resume=True).history
        == run(tmp_path / "whole", training=settings).history
    )
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")


@pytest.mark.parametrize("content", [None, "", '{"global_step": 4, "log_hi'], ids=["none", "empty", "half"])
def test_a_state_that_is_not_complete_is_skipped(content: str | None, adapted: Path, run: Run, tmp_path: Path) -> None:
    """If there is no other, the run begins again."""
    file = end_early(run, tmp_path / "out") / "checkpoint-4" / "trainer_state.json"
    file.unlink() if content is None else file.write_text(content)
    run(tmp_path / "out", resume=True)
    assert weights_of(tmp_path / "out") == weights_of(adapted)


def test_a_later_state_that_is_not_complete_is_skipped(adapted: Path, run: Run, tmp_path: Path) -> None:
    state = end_early(run, tmp_path / "out")
    shutil.copytree(state / "checkpoint-4", state / "checkpoint-6")
    (state / "checkpoint-6" / "trainer_state.json").unlink()
    (state / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    (state / "checkpoint-9").mkdir()
    steps = list[str]()
    run(tmp_path / "out", resume=True, progress=lambda step, *_: steps.append(step))
    assert [step.split(" of")[0] for step in steps if step.startswith("step")] == ["step 5", "step 6", "step 7"]
    assert weights_of(tmp_path / "out") == weights_of(adapted)


def test_resume_without_a_state_begins(adapted: Path, run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out", resume=True)
    assert weights_of(tmp_path / "out") == weights_of(adapted)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a setting": ({"training": WHOLE | {"learning_rate": 1e-3}}, "got: learning_rate 0.003\n.*: learning_rate 0.001"),
    "the funnel": ({"funnel": replace(LINEAR, stride=3)}, "funnel .*'stride': 2"),
    "the texts": ({"tokens": 800}, "rows_sha256"),
    "the tokens to measure on": ({"held_out": 30}, "held_out 4096\n.*held_out 30"),
    "the length": ({"length": 20}, "length 24"),
    "new weights": ({"from_scratch": True, "training": WHOLE | {"objective": "targets"}}, "from_scratch False"),
}


@pytest.fixture(scope="module")
def ended(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a state."""
    out = tmp_path_factory.mktemp("ended") / "out"
    with pytest.raises(Ended):
        adapt(checkpoint, out, data=texts, funnel=LINEAR, training=WHOLE, **SHORT, progress=end_at("step 5 "))
    return out


@pytest.mark.parametrize(("change", "says"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_run_is_refused(change: dict[str, Any], says: str, run: Run, ended: Path) -> None:
    before = digest(ended)
    with pytest.raises(BundleError, match=says) as caught:
        run(ended, resume=True, **change)
    assert "the state is of another run" in str(caught.value)
    assert digest(ended) == before


def test_a_state_is_kept_without_resume(run: Run, ended: Path) -> None:
    before = digest(ended)
    with pytest.raises(BundleError, match="state of a run that did not end") as caught:
        run(ended)
    assert "--resume" in str(caught.value)
    assert digest(ended) == before


@pytest.mark.parametrize("content", ["", "[1]", '{"training": 1}'])
def test_settings_that_cannot_be_read_are_refused(content: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / STATE).mkdir(parents=True)
    (tmp_path / "out" / STATE / SETTINGS).write_text(content)
    with pytest.raises(BundleError, match="cannot be read"):
        run(tmp_path / "out", resume=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_a_folder_with_other_files_is_kept(
    with_state: bool, resume: bool, ended: Path, run: Run, tmp_path: Path
) -> None:
    out = shutil.copytree(ended, tmp_path / "out") if with_state else tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "mine").write_text("mine")
    before = digest(out)
    with pytest.raises(BundleError):
        run(out, resume=resume)
    assert digest(out) == before


# Who takes the result


@pytest.mark.parametrize("task", slow_but(("text-generation",), ("text-generation", "text-generation-with-past")))
def test_it_is_exported_with_its_funnel(task: str, adapted: Path, texts: Path, tmp_path: Path) -> None:
    bundle = export(adapted, tmp_path / "bundle", task=task)
    assert bundle.spec.funnel == LINEAR
    assert check(bundle, targets=["onnxruntime"]).passed
    options: dict[str, Any] = {"length": 24, "dense": False}
    found, expected = evaluate(bundle, texts, **options), evaluate(adapted, texts, **options)
    assert found.measures.loss.value == pytest.approx(expected.measures.loss.value, abs=1e-4)


def test_hugging_face_loads_it(adapted: Path, checkpoint: Path, texts: Path) -> None:
    """As a dense model, to which the funnel in its config can be applied."""
    model = Gemma2ForCausalLM.from_pretrained(adapted, attn_implementation="eager").eval()
    assert model.config.funnel == LINEAR.to_dict()
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    dense = model(ids).logits
    assert not torch.equal(apply_funnel(model)(ids).logits, dense)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (adapted / name).exists() == (checkpoint / name).exists()


@pytest.mark.parametrize("stride", STRIDES)
def test_it_works_with_each_stride_that_was_drawn(stride: int, adapted: Path, checkpoint: Path, texts: Path) -> None:
    other = replace(LINEAR, stride=stride)
    trained, plain = (
        evaluate(model, texts, funnel=funnel, length=24)
        for model, funnel in ((adapted, other), (checkpoint, replace(other, recovery="delta")))
    )
    assert trained.measures.loss.value < plain.measures.loss.value
    with pytest.raises(SpecError, match="another funnel"):
        evaluate(adapted, texts, funnel=replace(other, recover_layer=2))


def test_it_is_trained_further_with_its_maps(adapted: Path, run: Run, tmp_path: Path) -> None:
    report = run(tmp_path / "out", checkpoint=adapted, funnel="auto", training={"steps": 1, "learning_rate": 1e-9})
    assert report.losses.before == pytest.approx(report_of(adapted).losses.after, abs=1e-5)


# Other runs


def test_the_dense_model_as_a_control(adapted: Path, run: Run, tmp_path: Path) -> None:
    """The funnel and the maps of the checkpoint are gone."""
    report = run(tmp_path / "out", checkpoint=adapted, funnel="none", training=TRAINING | {"steps": 20})
    assert (report.funnel, report.losses.dense) == (None, None)
    assert report.losses.after < report.losses.before
    assert report.training["objective"] == "targets"
    assert "funnel" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "funnel" in name]
    assert describe_adapt(report, tmp_path).startswith(f"{tmp_path}: dense\n")


def test_new_weights(adapted: Path, run: Run, tmp_path: Path) -> None:
    report = run(tmp_path / "out", checkpoint=adapted, from_scratch=True, training=TRAINING | {"steps": 20})
    assert report.losses.dense is None
    assert report.losses.after < report.losses.before < 4.5  # ln 61 is 4.1
    assert (report.training["objective"], report.training["part"]) == ("targets", "all")
    new, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", adapted))
    assert new.keys() == old.keys()
    assert (new["model.embed_tokens.weight"] - old["model.embed_tokens.weight"]).abs().mean() > 0.1


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of texts with labels, by task."""
    folder = tmp_path_factory.mktemp("labeled")
    return {
        "text-classification": save_classes(folder / "classes.jsonl"),
        "token-classification": save_tags(folder / "tags.jsonl"),
    }


@pytest.mark.parametrize("lookahead", [False, True], ids=["causal", "lookahead"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_language_model_gets_a_head(
    task: str,
    lookahead: bool,
    labeled: dict[str, Path],
    run: Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    funnel = FunnelSpec.parse(FUNNEL, lookahead=lookahead)
    settings = TRAINING | {"steps": 40, "part": "all"}
    report = run(tmp_path / "out", data=labeled[task], funnel=funnel, task=task, training=settings)
    assert capfd.readouterr() == ("", "")  # no table of weights, no bars
    assert (report.task, report.losses.dense, report.training["objective"]) == (task, None, "targets")
    assert report.history[-1].training < 0.8 * report.history[0].training
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "high", "1": "low"}
    cls = Gemma2ForSequenceClassification if task == "text-classification" else Gemma2ForTokenClassification
    assert config["architectures"] == [cls.__name__]
    assert cls.from_pretrained(tmp_path / "out").config.label2id == {"high": 0, "low": 1}
    found = evaluate(tmp_path / "out", labeled[task], dense=False)
    assert found.measures.accuracy.value > 0.75
    assert "held-out labels" in describe_adapt(report, tmp_path)


def test_a_classifier_is_trained_towards_itself(labeled: dict[str, Path], run: Run, tmp_path: Path) -> None:
    classes = saved(tmp_path, Gemma2ForSequenceClassification, num_labels=2)
    config = json.loads((classes / "config.json").read_text())
    (classes / "config.json").write_text(json.dumps(config | {"id2label": {"0": "high", "1": "low"}}))
    data, settings = labeled["text-classification"], TRAINING | {"steps": 20, "objective": "kl", "learning_rate": 1e-3}
    report = run(tmp_path / "out", checkpoint=classes, data=data, training=settings)
    assert report.losses.dense is not None
    assert report.history[-1].training < report.history[0].training


def test_a_new_head_keeps_fitted_maps(
    checkpoint: Path, texts: Path, labeled: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    fit(checkpoint, tmp_path / "fitted", funnel=FUNNEL, data=texts, tokens=2000, length=24, dtype="float32")
    task, settings = "text-classification", TRAINING | {"steps": 1, "maps_learning_rate": 1e-9}
    options: dict[str, Any] = {"data": labeled[task], "task": task, "training": settings}
    run(tmp_path / "out", checkpoint=tmp_path / "fitted", funnel="auto", **options)
    fitted = load_file(tmp_path / "fitted" / "funnel.safetensors")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in fitted.items():
        torch.testing.assert_close(weights[name], weight)


# Bad input


def lines(*rows: object) -> Callable[[Path], Path]:
    """Writes a file with these lines."""
    return lambda folder: save_lines(folder / "bad.jsonl", rows)


TEXTS = [{"text": text_of(ids)} for ids in patterns(3)]
CLASSES: dict[str, Any] = {"checkpoint": Gemma2ForSequenceClassification, "funnel": FUNNEL, "training": {}}
NEW = {"from_scratch": True, "funnel": FUNNEL}
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an empty file": ({"data": lines()}, DataError, "empty|no documents"),
    "no such file": ({"data": "/nowhere.txt"}, DataError, "not found"),
    "other columns": ({"data": lines({"body": "w3"})}, DataError, "no column 'text'"),
    "one text": ({"data": lines(TEXTS[0])}, DataError, "too little text"),
    "one label": (
        {"data": lines(*({**text, "label": "a"} for text in TEXTS)), "task": "text-classification", "training": {}},
        DataError,
        "too few labels",
    ),
    "a label that the model does not have": (
        CLASSES | {"data": lines(*({**text, "label": 3} for text in TEXTS))},
        DataError,
        "does not have a label",
    ),
    "tokens of a classifier": (
        CLASSES | {"data": lines(*({**text, "label": 1} for text in TEXTS)), "tokens": 10},
        SpecError,
        "for language models",
    ),
    "too long": ({"length": 513}, SpecError, "max_position_embeddings"),
    "kl of the dense model": ({"funnel": "none", "training": {"objective": "kl"}}, SpecError, "towards itself"),
    "kl of new weights": (NEW | {"training": {"objective": "kl"}}, SpecError, "no dense model"),
    "kl with a new head": (
        {"task": "text-classification", "training": {"objective": "kl"}},
        SpecError,
        "no dense model to train towards",
    ),
    "adapters of new weights": (NEW | {"training": {"part": "lora"}}, SpecError, "would stay untrained"),
    "float16": ({"dtype": "float16"}, SpecError, "float16 is not supported"),
    "maps of another recovery": ({"funnel": FUNNEL, "training": {"part": "maps"}}, SpecError, "has no maps"),
    "maps of the dense model": (
        {"funnel": "none", "training": {"part": "maps", "objective": "targets"}},
        SpecError,
        "has no part maps",
    ),
    "a rate for maps": (
        {"training": {"part": "maps", "learning_rate": 1e-3}},
        SpecError,
        "does not apply to the maps",
    ),
    "other strides": ({"training": {"strides": (3, 4)}}, SpecError, "strides do not fit"),
    "strides of dropped layers": ({"funnel": "1:3:drop", "training": {"strides": (1,)}}, SpecError, "strides do not"),
    "a vocabulary for targets": (
        {"training": {"objective": "targets", "vocabulary": 9}},
        SpecError,
        "for objective kl",
    ),
    "a vocabulary of labels": (
        CLASSES | {"training": {"objective": "kl", "vocabulary": 9}},
        SpecError,
        "vocabulary is for language models",
    ),
    "a learning rate of 0": ({"training": {"learning_rate": 0}}, SpecError, "learning_rate must be positive"),
    "a rank of 0": ({"training": {"rank": 0}}, SpecError, "rank must be at least 1"),
    "nothing to train": ({"funnel": "0:2:drop", "training": {"objective": "hidden"}}, SpecError, "nothing to train"),
    "a funnel beyond the layers": ({"funnel": "1:9:2"}, SpecError, "beyond the model's layers"),
    "a funnel with lookahead": (
        {"funnel": FunnelSpec.parse(FUNNEL, lookahead=True)},
        SpecError,
        "cannot generate text",
    ),
    "a model without a head": ({"checkpoint": Gemma2Model}, SpecError, "nothing to train"),
    "a classifier as a language model": (CLASSES | {"task": "text-generation"}, SpecError, "head of another task"),
    "a classifier as a tagger": (CLASSES | {"task": "token-classification"}, SpecError, "head of another task"),
    "a tagger that Hugging Face does not have": (
        {"checkpoint": Gemma3ForCausalLM, "task": "token-classification"},
        CheckpointError,
        "no model of .* for the task",
    ),
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Checkpoints of other classes."""
    classes = (Gemma2ForSequenceClassification, Gemma2Model, Gemma3ForCausalLM)
    return {cls: saved(tmp_path_factory.mktemp("other"), cls) for cls in classes}


@pytest.mark.parametrize(("change", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_anything_is_written(
    change: dict[str, Any], error: type[Exception], says: str, others: dict[Any, Path], run: Run, tmp_path: Path
) -> None:
    options = {"training": {}} | change
    if "checkpoint" in options:
        options["checkpoint"] = others[options["checkpoint"]]
    if callable(options.get("data")):
        options["data"] = options["data"](tmp_path)
    with pytest.raises(error, match=says):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit(run: Run, tmp_path: Path) -> None:
    small = saved(tmp_path, vocab_size=20)
    with pytest.raises(DataError, match="tokenizer does not fit"):
        run(tmp_path / "out", checkpoint=small)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (small / name).unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        run(tmp_path / "out", checkpoint=small)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["accelerate", "peft"])
def test_a_package_that_is_not_installed(
    package: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpecError, match=f"the package {package}") as caught:
        run(tmp_path / "out")
    assert "try: pip install 'accelerate>=" in str(caught.value)
    assert not (tmp_path / "out").exists()
