"""Nobody who opens a folder while it is replaced finds it missing, mixed or cut off; whenever a writer is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS, ROUNDS = (30, 600) if os.environ.get("FUNNEL_EXPORT_SOAK") else (2, 40)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """What `swapping.py` found: it forks, which a process with as many threads as this one should not."""
    command = [sys.executable, str(Path(__file__).parents[1] / "swapping.py")]
    command += ["--seconds", str(SECONDS), "--rounds", str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_reader_always_finds_one_whole_folder(result: dict[str, Any]) -> None:
    reading = result["reading"]
    assert reading["faults"] == []
    assert reading["seen"] > 5


def test_a_writer_that_is_killed_at_any_time_leaves_one_whole_folder(result: dict[str, Any]) -> None:
    killing = result["killing"]
    assert killing["faults"] == []
    assert killing["left"] > 0
    assert killing["uncleaned"] == 0
