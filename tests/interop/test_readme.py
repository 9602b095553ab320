"""The documented Python for other people's runtimes runs, beside a bundle that is named as there."""

import re
import subprocess
import sys
from pathlib import Path

from cases import EMBEDDER

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


def test_snippets(bundles: Path, tmp_path: Path) -> None:
    codes = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my-bundle").symlink_to(bundles / "text-generation-funnel")
    (tmp_path / "my-embedder").symlink_to(bundles / f"{EMBEDDER}-funnel")
    for code, output in zip(codes, ("[{'generated_text': 'The with statement", "tensor([["), strict=True):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(output)
