"""What the benchmarks share: processes of their own, peak memory, and the conditions that a number carries."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def peak_gb() -> float:
    """The most memory that this process has held, mapped files included.

    VmHWM, not ru_maxrss: a new process starts with its parent's ru_maxrss.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e9


def commit() -> str:
    """The commit that is measured; says so if the package has changes that are not committed.

    A copy without git names its commit in the variable FUNNEL_EXPORT_COMMIT.
    """
    if "FUNNEL_EXPORT_COMMIT" in os.environ:
        return os.environ["FUNNEL_EXPORT_COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(HERE), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "../funnel_export")
    return git("rev-parse", "--short", "HEAD") + (" and changes" if changed else "")


def conditions(packages: Iterable[str]) -> dict[str, Any]:
    """What a measurement depends on."""
    from funnel_export.system.machine import processor  # not at the top: peers import this file without our package

    return {
        "cpu": processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": commit(),
    }


def timed(command: list[str], **options: Any) -> dict[str, Any]:
    """Run a command whose last line of stdout is a JSON object; adds the seconds from its start to its end.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    seconds = time.perf_counter() - start
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(seconds, 2), **result}


def measured(code: str, *arguments: str, **options: Any) -> dict[str, Any]:
    """Run code that prints JSON in a process of its own, in which this module can be imported; `options` as `timed`."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return timed([sys.executable, "-c", code, *arguments], env=environment, **options)


def failure(err: Exception) -> str:
    """The important part of an error, in one line."""
    text = err.stderr if isinstance(err, subprocess.CalledProcessError) and err.stderr else str(err)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"failed: {lines[-1][:300] if lines else repr(err)}"


def attempt(code: str, *arguments: str) -> dict[str, Any]:
    """Run code in a process of its own; how it died, if it did."""
    try:
        return measured(code, *arguments, stderr=subprocess.PIPE)
    except (subprocess.CalledProcessError, ValueError, IndexError) as err:
        return {"state": "failed", "why": f"{failure(err)} ({err})"[:1000]}


def record(result: dict[str, Any], out: Path | None) -> None:
    """Write a result to a file, if one is named, and print it as the last line of stdout."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
