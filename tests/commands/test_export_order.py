"""What can be said cheaply is said first: before torch is imported, and long before anything is traced."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint.spoiled import WEIGHTS, configured, copied, renamed

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
    command = [sys.executable, "-c", CODE, "export", str(checkpoint), str(tmp_path / "out"), "--funnel", "1:3:2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not HEAVY & set(done.stdout.split())
