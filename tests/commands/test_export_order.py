"""What can be said cheaply is said first: before torch is imported, and long before anything is traced."""

import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from checkpoint.spoiled import WEIGHTS, configured, copied, renamed
from exported import Recipe
from tiers import slow_but

HEAVY = {"torch", "transformers", "onnx_ir"}
CODE = """
import sys
from funnel_export.cli import run
try:
    run(sys.argv[1:])
finally:
    print(*{name.split(".")[0] for name in sys.modules})
"""


def adapted(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")


def linked(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").rename(checkpoint.parent / "elsewhere")
    (checkpoint / "tokenizer.json").symlink_to("../elsewhere")


SPOILS: dict[str, Callable[[Path], object]] = {
    "does not exist": lambda checkpoint: checkpoint.rename(checkpoint.parent / "moved"),
    "there is no config.json": lambda checkpoint: (checkpoint / "config.json").unlink(),
    "no safetensors": lambda checkpoint: (checkpoint / WEIGHTS).unlink(),
    "git -C": lambda checkpoint: (checkpoint / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
    "the prefix 'module.'": lambda checkpoint: renamed(checkpoint, lambda name: f"module.{name}"),
    "PEFT adapter": adapted,
    "auto_map": lambda checkpoint: configured(checkpoint, auto_map={"AutoModel": "m.M"}),
    "only causal attention": lambda checkpoint: configured(checkpoint, use_bidirectional_attention=True),
    "links out of it": linked,
    "beyond the model's layers": lambda checkpoint: configured(checkpoint, num_hidden_layers=2, layer_types=None),
}


@pytest.mark.parametrize("message", SPOILS)
def test_refused_without_torch(message: str, tmp_path: Path) -> None:
    checkpoint = copied(tmp_path)
    SPOILS[message](checkpoint)
    refused(message, "export", checkpoint, tmp_path / "out", "--funnel", "1:3:2")


def refused(message: str, *arguments: object, heavy: Collection[str] = HEAVY) -> None:
    """Run a command, which must fail with a message and without heavy imports."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not set(heavy) & set(done.stdout.split())


BUNDLE, CHECKPOINT = "there is no bundle here", "does not exist"
COMMANDS: dict[str, str] = {
    "export MISSING OUT": CHECKPOINT,
    "inspect MISSING": BUNDLE,
    "inspect MISSING --graph": BUNDLE,
    "check MISSING": BUNDLE,
    "bench MISSING": BUNDLE,
    "compile MISSING --target onnxruntime": BUNDLE,
    "compile MISSING --target tensorrt": BUNDLE,
    "package MISSING OUT": BUNDLE,
    "report MISSING": BUNDLE,
    "generate MISSING --prompt text": BUNDLE,
    "evaluate MISSING --data TEXT": CHECKPOINT,
    "evaluate CHECKPOINT --data TEXT --against MISSING": CHECKPOINT,
    "evaluate CHECKPOINT --data MISSING.txt": "data not found",
    "evaluate BUNDLE --data MISSING.txt": "data not found",
    "evaluate BUNDLE --data TEXT --engine none": "no such engine",
    "fit MISSING OUT --funnel 1:3:2 --data TEXT": CHECKPOINT,
    "fit CHECKPOINT OUT --funnel 1:3:2 --data MISSING.txt": "data not found",
    "fit CHECKPOINT FULL --funnel 1:3:2 --data TEXT": "FULL",
    "adapt MISSING OUT --data TEXT": CHECKPOINT,
    "adapt CHECKPOINT OUT --data MISSING.txt": "data not found",
    "adapt CHECKPOINT FULL --data TEXT": "FULL",
    "transplant MISSING OUT --base CHECKPOINT --instruct CHECKPOINT": CHECKPOINT,
    "check BUNDLE --engine none": "no such engine",
    "check BUNDLE --target none": "unknown target",
    "bench BUNDLE --engine none": "no such engine",
    "bench BUNDLE --dense MISSING": BUNDLE,
    "generate BUNDLE --prompt text": "no graphs with a cache",
    "compile BUNDLE --target none": "unknown target",
}


FIRST = {command.split()[0]: command for command in reversed(COMMANDS)}.values()
"""One of each command."""


@pytest.mark.parametrize("command", slow_but(FIRST, COMMANDS))
def test_a_missing_path_is_refused_without_torch(command: str, tmp_path: Path) -> None:
    places = {
        "CHECKPOINT": lambda: copied(tmp_path),
        "BUNDLE": lambda: Recipe().bundle().path,
        "OUT": lambda: tmp_path / "out",
        "FULL": lambda: tmp_path / "FULL",
        "MISSING": lambda: tmp_path / "missing",
        "MISSING.txt": lambda: tmp_path / "missing.txt",
        "TEXT": lambda: tmp_path / "text.txt",
    }
    (tmp_path / "text.txt").write_text("A text.")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine").write_text("mine")
    words = command.split()
    found = {word: places[word]() for word in places.keys() & set(words)}
    # The shapes of a bundle's graphs are read with onnx_ir.
    heavy = HEAVY - {"onnx_ir"} if "BUNDLE" in found else HEAVY
    refused(COMMANDS[command], *(found.get(word, word) for word in words), heavy=heavy)
