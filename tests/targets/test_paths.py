"""Paths that runtimes cannot open are refused with the reason: the name itself, or how Python reads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from exported import Recipe

CODE = """
import sys
from funnel_export.bundle.load import load_bundle
from funnel_export.errors import BundleError
from funnel_export.targets.registry import validate_path
try:
    validate_path(load_bundle(sys.argv[1]))
except BundleError as err:
    print(ascii(str(err)))
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("é".encode(), {}, ""),
        ("é".encode(), {"LC_ALL": "C"}, ""),
        ("é".encode(), ASCII, "file system encoding is not UTF-8"),
        ("é".encode(), ASCII, "PYTHONUTF8=1"),
        (b"\xff", {}, "a path that is not UTF-8"),
        (b"\xff", ASCII, "a path that is not UTF-8"),
        (b"plain", ASCII, ""),
    ],
)
def test_names(name: bytes, environment: dict[str, str], message: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    os.symlink(Recipe().bundle().path, path)  # noqa: PTH211 - its name is bytes
    command = [sys.executable, "-c", CODE, path]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert message in done.stdout
    assert bool(message) == bool(done.stdout)
