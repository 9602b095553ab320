"""How much the command line prints: quiet, usual and verbose, on a terminal and in a pipe."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from command_line import run, run_alone
from exported import Recipe
from latencies import make_demo, make_latency

from funnel_export.cli.output import QUIET, USUAL, VERBOSE, set_loudness, show_progress

FLOAT16 = ("--funnel", "none", "--task", "text-generation", "--dtype", "float16")
"""Options of an export that warns."""


@pytest.fixture(autouse=True)
def _usual() -> object:
    yield
    set_loudness(USUAL)


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_quiet_prints_results_and_errors_only(before: bool, tmp_path: Path) -> None:
    def quiet(*command: object) -> object:
        return run("--quiet", *command) if before else run(*command, "-q")

    checkpoint = Recipe().checkpoint()
    done = quiet("export", checkpoint, tmp_path / "out", *FLOAT16)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out'}: text-generation, float16\n"
    failed = quiet("inspect", "nowhere")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: there is no bundle here\n")
    usual = run("export", checkpoint, tmp_path / "out", *FLOAT16)
    assert "warning: " in usual.stderr, "--quiet must not affect the next command"


@pytest.mark.slow
def test_verbose_prints_steps_logs_and_tracebacks(tmp_path: Path) -> None:
    options = ("--funnel", "1:3:2", "--task", "text-generation")
    done = run_alone("export", Recipe().checkpoint(), tmp_path / "out", *options, "-v")
    assert done.returncode == 0, done.stderr
    for step in ("reading the checkpoint", "tracing", "auditing the graph", "writing the bundle"):
        assert f" s  {step}\n" in done.stderr
    assert "torch.__trace" not in done.stderr
    failed = run_alone("-v", "inspect", "nowhere", "--json")
    assert failed.returncode == 2
    assert failed.stderr.startswith("Traceback")
    assert failed.stderr.count("error: there is no bundle here") == 1
    assert json.loads(failed.stdout)["exit_code"] == 2


def test_logs_of_libraries_are_printed_only_with_verbose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "warning")
    library = logging.getLogger("a_library")
    for level, told in ((USUAL, ""), (VERBOSE, "a_library: weights of 3 GB\n"), (QUIET, "")):
        set_loudness(level)
        library.info("weights of 3 GB")
        assert capsys.readouterr().err == told


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "level", "stages", "told"),
    [
        (io.StringIO, USUAL, False, []),
        (io.StringIO, USUAL, True, ["parity", "latency"]),
        (io.StringIO, VERBOSE, True, ["parity: a", "parity: b", "latency: c"]),
        (io.StringIO, QUIET, True, []),
        (Terminal, QUIET, True, []),
    ],
)
def test_progress_as_lines(
    stream: type[io.StringIO], level: int, stages: bool, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "warning")
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    set_loudness(level)
    with show_progress(stages=stages) as progress:
        for step in ("parity: a", "parity: a", "parity: b", "latency: c"):
            progress(step)
            progress(step, 0.5)
    assert [line.split(" s  ")[1] for line in shown.getvalue().splitlines()] == told


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with show_progress() as progress:
        progress("tracing")
    assert "tracing" in shown.getvalue()


def test_the_demo_prints_its_first_step_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finished(*_: object, **__: object) -> object:
        report = make_latency(Recipe().bundle(), min_speedup=None)
        return make_demo(report, report.parity)

    monkeypatch.setattr("funnel_export.commands.demo.run_demo", finished)
    assert run("demo", tmp_path, "--json").stderr == "    0 s  loading PyTorch\n"
    assert run("demo", tmp_path, "--json", "--quiet").stderr == ""
