"""Runs what mounts file systems, in a namespace of its own; skips where that is not permitted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def namespace(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with `folder` as $0, which has a folder `mnt`, where it may mount; skip where it may not."""
    prefix = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "sh", "-c"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    probe = [*prefix, 'mount -t tmpfs none "$0"', str(folder / "mnt")]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")
    return subprocess.run([*prefix, script, str(folder), *arguments], capture_output=True, text=True, check=False)


def run_mounted(program: Path, folder: Path) -> dict[str, Any]:
    """What a Python program that may mount prints in its last line as JSON; its argument is a folder."""
    (folder / "mnt").mkdir()
    done = namespace('exec "$@"', folder, sys.executable, str(program), str(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def mount(*arguments: str | Path) -> None:
    """Mount something, for such a program."""
    subprocess.run(["mount", *map(str, arguments)], check=True)  # noqa: S607
