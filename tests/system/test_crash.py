"""A killed export leaves the earlier bundle whole, and the next one tidies up; of two at once one wins."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiers import SOAK

POINTS, ROUNDS = (50, 20) if SOAK else (8, 2)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """What `crash.py` found: it forks, which a process with as many threads as this one should not."""
    command = [sys.executable, str(Path(__file__).parents[1] / "crash.py")]
    command += ["--points", str(POINTS), "--rounds", str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_killed_export_harms_nothing(result: dict[str, Any]) -> None:
    killed = result["killed"]
    assert killed["killed"] == POINTS
    assert killed["lost"] == 0
    assert killed["old"] + killed["new"] == POINTS
    assert killed["old"] > POINTS // 2  # most of the way nothing has its name yet
    assert killed["new"] > 0  # and the last points come after it has
    assert killed["left"] > 0
    assert killed["uncleaned"] == 0


def test_of_two_exports_at_once_one_wins(result: dict[str, Any]) -> None:
    at_once = result["at_once"]
    assert at_once["old"] + at_once["new"] == at_once["rounds"] == ROUNDS
    assert (at_once["mixed"], at_once["left"], at_once["failed"]) == (0, 0, 0)
