"""README and docs are true: commands and Python run, in a folder in which `make demo` seems to have been run."""

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from command_line import call
from models import save_tiny_checkpoint
from optimum.commands import optimum_cli
from safetensors.torch import load_file, save_file
from tiers import slow_but

from funnel_export import cli
from funnel_export.commands.demo import make_tokenizer

ROOT = Path(__file__).parent.parent
PAGE_NAMES = (
    *("export", "quantize", "generate", "funnel", "compile", "gates"),
    *("evaluate", "fit", "adapt", "transplant", "deploy"),
)
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in PAGE_NAMES),
]
"""In the order in which they are read: later ones use what earlier ones make."""
LONGEST = 150
"""Lines of the README."""
PROGRAMS: dict[str, Callable[[], None]] = {"funnel-export": cli.main, "optimum-cli": optimum_cli.main}
"""The programs that the README may run, and the main function of each."""


def blocks(kind: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """The pages' code blocks of one language."""
    text = "\n".join(page.read_text() for page in pages)
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds demo-out/checkpoint, tiny, with a layer after the demo's funnel; one that was tuned from it; and texts."""
    folder = tmp_path_factory.mktemp("readme")
    tokenizer = make_tokenizer()
    checkpoint = folder / "demo-out" / "checkpoint"
    save_tiny_checkpoint(checkpoint, num_hidden_layers=10, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(checkpoint)
    shutil.copytree(checkpoint, folder / "instruct")
    weights = load_file(folder / "instruct" / "model.safetensors")
    tuned = {name: weight * (1 + 0.01 * torch.rand(weight.shape)) for name, weight in weights.items()}
    save_file(tuned, folder / "instruct" / "model.safetensors", {"format": "pt"})
    (folder / "texts").mkdir()
    for name in ("with", "for", "while"):
        (folder / "texts" / f"{name}.txt").write_text(topics[name])
    return folder


@pytest.fixture(scope="module")
def done() -> list[Path]:
    """The pages whose commands have run in `folder`."""
    return []


def run_commands(pages: Sequence[Path], folder: Path, done: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of pages, except those in `done`."""
    monkeypatch.chdir(folder)
    for page in pages:
        if page in done:
            continue
        done.append(page)
        for command in (line.removeprefix("$ ") for block in blocks("console", [page]) for line in block.splitlines()):
            monkeypatch.setattr(sys, "argv", shlex.split(command))
            ended = call(PROGRAMS[sys.argv[0]])
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"


def test_pages_have_commands() -> None:
    assert len("".join(blocks("console", PAGES[:1])).splitlines()) >= 5
    assert [page.stem for page in PAGES if not blocks("console", [page])] == ["funnel"]


@pytest.mark.parametrize("page", slow_but(PAGES[:1], PAGES), ids=lambda page: page.name)
def test_commands(page: Path, folder: Path, done: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a page, after those of the pages before, whose results they use."""
    run_commands(PAGES[: PAGES.index(page) + 1], folder, done, monkeypatch)


def run_python(pages: Sequence[Path], folder: Path) -> str:
    """Run the Python blocks of pages as one program; what it prints."""
    code = "\n".join(blocks("python", pages))
    assert "funnel_export" in code
    (folder / "session.py").write_text(code)
    return call(lambda: runpy.run_path("session.py", run_name="__main__")).stdout


def test_python(folder: Path, done: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_commands(PAGES[:1], folder, done, monkeypatch)
    assert run_python(PAGES[:1], folder).startswith("True ")


@pytest.mark.slow
def test_python_of_the_docs(folder: Path, done: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_commands(PAGES, folder, done, monkeypatch)
    assert run_python(PAGES[1:], folder).startswith("<bos>The with statement")


@pytest.mark.parametrize("file", ["README.md", "docs/choosing.md", "docs/quality.md", "benchmarks/README.md"])
def test_tables_are_made_from_the_result_files(file: str) -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["rendered"](file) == (ROOT / file).read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


ALL_PAGES = pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)


@ALL_PAGES
def test_code_blocks_have_a_language(page: Path) -> None:
    """One without a language would neither run here nor be known as output."""
    fences = re.findall(r"^```.*$", page.read_text(), re.MULTILINE)
    assert "```" not in fences[::2]
    assert set(fences[1::2]) <= {"```"}


@ALL_PAGES
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
