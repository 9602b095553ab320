"""The help of every command: complete, without internal terms, with the code's defaults and choices, and fast."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import run
from typer.main import get_command

from funnel_export.cli import app
from funnel_export.spec.choices import PYTORCH, Backend, Device, Dtype, Kind, Logits, Pooling, Task
from funnel_export.spec.defaults import EVALUATED_LENGTH, FACTOR, LENGTHS, ROUNDS
from funnel_export.spec.export import DEFAULT_OPSET
from funnel_export.spec.quantization import QUANTIZED_OPSET
from funnel_export.system.place import Placing

HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "matplotlib", "datasets"}
INTERNAL = ("candidate", "contract", "runner", "role", "initializer", "stash", "None", "<bool>", "list[")
"""Terms that only readers of the code know."""


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with its path of names."""
    command = get_command(app) if group is None else group
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


COMMANDS = dict(commands())


def page(*path: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The help of a command on a wide screen."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    return run(*path, "--help").stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS[path]
    assert command.help
    for param in command.params:
        assert param.help, f"{path}: {param.name}"
        assert param.help.endswith("."), f"{path}: {param.name}"
    shown = page(*path, monkeypatch=monkeypatch)
    assert all(option in shown for param in command.params for option in param.opts if option.startswith("--"))
    found = [word for word in INTERNAL if re.search(rf"(?<!\w){re.escape(word)}", shown)]
    assert not found


@pytest.mark.parametrize(
    ("path", "option", "values"),
    [
        ("export", "task", ("auto", *Task)),
        ("export", "dtype", ("auto", *Dtype)),
        ("export", "logits", tuple(Logits)),
        ("export", "weights", tuple(Placing)),
        ("export", "pooling", tuple(Pooling)),
        ("bench", "pytorch", (*PYTORCH, "none")),
        ("bench", "device", tuple(Device)),
        ("package", "format", ("triton",)),
        ("package", "backend", tuple(Backend)),
        ("package", "kind", tuple(Kind)),
        ("package", "weights", tuple(Placing)),
    ],
)
def test_choices_are_in_the_help_and_in_errors(
    path: str, option: str, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"<{'|'.join(values)}>" in page(path, monkeypatch=monkeypatch)
    done = run(path, "A", *("B" for _ in range(path != "bench")), f"--{option}", "nonesuch")
    assert done.returncode == 2
    told = re.sub(r"[│\s]+", "", done.stderr)
    assert f"Invalidvaluefor'--{option}'" in told
    assert all(f"'{value}'" in told for value in values)


def test_defaults_in_the_help_match_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, defaults in {
        "export": [
            f"({DEFAULT_OPSET}, or {QUANTIZED_OPSET} for quantized weights)",
            "auto",
            "(mean)",
            "(delta)",
            "link",
        ],
        "check": [FACTOR],
        "evaluate": [EVALUATED_LENGTH, "float32", "(with a funnel)", "(as many as have 512 tokens)"],
        "bench": [ROUNDS, f"({', '.join(map(str, LENGTHS))})", f"({', '.join(PYTORCH)})"],
    }.items():
        shown = page(path, monkeypatch=monkeypatch)
        assert all(f"[default: {default}]" in shown for default in defaults)


def loaded(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """The output of a command line, and the top-level packages that its process has loaded at exit."""
    code = (
        "import atexit, sys; atexit.register(lambda: print(*{n.split('.')[0] for n in sys.modules}, file=sys.stderr));"
        "sys.argv[0] = 'funnel-export'; from funnel_export.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("check", "--help"), ("--show-completion", "bash")])
def test_help_and_completion_load_no_heavy_packages(arguments: tuple[str, ...]) -> None:
    text, packages = loaded(*arguments, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert text
    assert "funnel_export" in packages
    assert not packages & (HEAVY | {"numpy"})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("check B --target open", {"openvino"}),
        ("compile B --target tensorrt", {"tensorrt", "tensorrt-rtx"}),
        ("export --dtype b", {"bfloat16"}),
        ("ins", {"inspect"}),
    ],
)
def test_completion(words: str, found: set[str]) -> None:
    line = f"funnel-export {words}"
    text, packages = loaded(
        _FUNNEL_EXPORT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1)
    )
    assert set(text.split()) == found
    assert not packages & HEAVY
