"""`generate`, and `compile` of a bundle with several graphs, on the command line."""

import json
import shutil
from pathlib import Path

import pytest
from exported import Recipe
from tokenizers_of_words import save_tokenizer
from typer.testing import CliRunner

from funnel_export import FunnelSpec, generate
from funnel_export.cli import app
from funnel_export.spec.choices import Task

RECIPE = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = shutil.copytree(RECIPE.bundle().path, tmp_path / "bundle")
    save_tokenizer(folder)
    return folder


def run(*arguments: str, stdin: str | None = None) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["generate", *arguments], input=stdin, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout, found.stderr


def test_text_on_stdout_and_figures_on_stderr(bundle: Path) -> None:
    wanted = generate(bundle, "w5 w6 w7", sample=False, max_new_tokens=7)
    out, err = run(str(bundle), "--prompt", "w5 w6 w7", "--greedy", "--max-new-tokens", "7")
    assert out == f"{wanted.text}\n"
    assert err.startswith("4 tokens of prompt, first token after ")
    assert "; 7 new tokens, length; cache " in err


def test_a_prompt_from_standard_input(bundle: Path) -> None:
    options = (str(bundle), "--greedy", "--max-new-tokens", "5")
    assert run(*options, stdin="w5 w6 w7\n")[0] == run(*options, "--prompt", "w5 w6 w7")[0]


def test_one_json_object(bundle: Path) -> None:
    out, _ = run(str(bundle), "--prompt", "w5", "--seed", "1", "--top-k", "40", "--max-new-tokens", "6", "--json")
    found = json.loads(out)
    assert found["tokens"] == generate(bundle, "w5", seed=1, top_k=40, max_new_tokens=6).tokens
    assert found["finish_reason"] == "length"
    assert found["peak_memory_bytes"] > found["cache_bytes"] > 0


def test_greedy_and_sampling_exclude_each_other(bundle: Path) -> None:
    from funnel_export.errors import SpecError

    found = CliRunner().invoke(app, ["generate", str(bundle), "--prompt", "w5", "--greedy", "--seed", "1"])
    assert isinstance(found.exception, SpecError)
    assert "--greedy does not sample" in str(found.exception)


def test_compile_builds_every_graph_and_generate_takes_them_together(bundle: Path) -> None:
    found = CliRunner().invoke(
        app, ["compile", str(bundle), "--target", "openvino", "--name", "mine", "--json"], catch_exceptions=False
    )
    assert [engine["graph"] for engine in json.loads(found.stdout)["engines"]] == ["entry", "middle", "exit"]
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == ["entry-mine", "exit-mine", "middle-mine"]
    options = (str(bundle), "--prompt", "w5 w6", "--greedy", "--max-new-tokens", "5")
    assert run(*options, "--engine", "mine")[0] == run(*options, "--target", "openvino")[0]
