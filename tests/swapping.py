"""Replaces a small folder again and again, for `system/test_swapping.py`: prints JSON.

A reader in a process of its own opens the folder all the time. And writers are killed after a time of their own, so
that a kill also comes within a call of the system, between the lines of Python.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import FORK

from funnel_export.system.atomic import replace_folder

FILES = 12


def write_for_ever(target: Path) -> None:
    """Replace a folder by one whose files all hold the same new number."""
    number = 0
    while True:
        number += 1
        with replace_folder(target, lambda _: True) as fresh:
            (fresh / "inner").mkdir()
            for file in range(FILES):
                (fresh / "inner" / str(file)).write_text(f"{os.getpid()} {number}")


def fault(target: Path) -> str | None:
    """What is wrong with the folder that has this name, from opening it to having read it; None if nothing is."""
    try:
        handle = os.open(target, os.O_DIRECTORY)
    except OSError as err:
        return type(err).__name__
    try:
        found = _fault_inside(Path(f"/proc/self/fd/{handle}/inner"))
        replaced = not os.path.samestat(os.fstat(handle), target.stat())
    except OSError as err:  # the name is gone
        return type(err).__name__
    finally:
        os.close(handle)
    return None if replaced else found  # what was replaced is removed while it is read


def _fault_inside(folder: Path) -> str | None:
    try:
        numbers = [path.read_text() for path in folder.iterdir()]
    except OSError as err:
        return f"inside: {type(err).__name__}"
    return None if len(numbers) == FILES and len(set(numbers)) == 1 else f"{len(numbers)} files, {set(numbers)}"


def start(job: Callable[[Path], None], target: Path) -> Any:
    """A process that does a job for ever."""
    process = FORK.Process(target=job, args=(target,), daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    """End it in whatever it does."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def read_all_the_time(target: Path, seconds: float) -> dict[str, Any]:
    """Read while two writers replace the folder."""
    writers = [start(write_for_ever, target) for _ in range(2)]
    while not target.exists():
        time.sleep(0.001)
    seen, faults, end = {target.stat().st_ino}, [], time.monotonic() + seconds
    while time.monotonic() < end:
        found = fault(target)
        faults += [found] if found else []
        with contextlib.suppress(FileNotFoundError):
            seen.add(target.stat().st_ino)
    for writer in writers:
        kill(writer)
    return {"seen": len(seen), "faults": faults[:5]}


def kill_at_any_time(target: Path, rounds: int) -> dict[str, Any]:
    """Kill a writer after some milliseconds, again and again."""
    chance, faults, left = random.Random(0), [], 0  # noqa: S311 - not for secrets
    for _ in range(rounds):
        writer = start(write_for_ever, target)
        time.sleep(chance.uniform(0.005, 0.05))
        kill(writer)
        found = fault(target)
        faults += [found] if found else []
        left += len(list(target.parent.iterdir())) > 1
    with replace_folder(target, lambda _: True):
        pass
    return {"faults": faults[:5], "left": left, "uncleaned": len(list(target.parent.iterdir())) - 1}


def main() -> None:
    """Read, kill, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        target = Path(name, "out")
        reading = read_all_the_time(target, options.seconds)
        print(json.dumps({"reading": reading, "killing": kill_at_any_time(target, options.rounds)}))  # noqa: T201


if __name__ == "__main__":
    main()
