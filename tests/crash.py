"""Kills exports, for `test_crash.py`, and with `--real N` for a person: prints JSON.

An export is killed by SIGKILL after a given line of the files that write bundles, in a forked process that has the
traced graph already, as tracing writes nothing. `--real` runs whole exports from the command line and kills them after
a given time.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from killing import FORK, digest, forked
from models import save_tiny_checkpoint
from tracing import share_traces

import funnel_export
from funnel_export.bundle import load as bundle
from funnel_export.commands import export as pipeline
from funnel_export.exporter import build, write
from funnel_export.system import atomic, claims, filling, locks, place

FILES = {str(module.__file__) for module in (atomic, bundle, claims, filling, locks, pipeline, place, write)}


def prepare(folder: Path) -> dict[str, Callable[[], None]]:
    """Two exports to one place that differ in their opset, with their graphs traced; and what each of them makes."""
    checkpoint = save_tiny_checkpoint(folder / "checkpoint")
    share_traces()
    trace, graphs = build.build_graphs, {}

    def traced(*args: Any) -> Any:
        opset = args[1].opset  # checkpoint, what to export
        graphs[opset] = graphs.get(opset) or trace(*args)
        return graphs[opset]

    build.build_graphs = traced
    jobs = {}
    for name, opset in (("old", 20), ("new", 21)):
        job = partial(funnel_export.export, checkpoint, funnel="1:3:2", task="text-generation", opset=opset)
        job(folder / name)
        jobs[name] = partial(job, folder / "out" / "bundle")
    return jobs  # type: ignore[return-value]  # what they return is not wanted


def kill_at_lines(points: int) -> dict[str, Any]:
    """Kill exports over an existing bundle: half of the points all along their way, half where names change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = prepare(folder)
        old, new = digest(folder / "old"), digest(folder / "new")
        out = folder / "out"
        jobs["old"]()
        code, lines = forked(jobs["new"], FILES)
        assert code == 0
        assert digest(out / "bundle") == new
        result: dict[str, Any] = {"lines": lines, "killed": 0, "old": 0, "new": 0, "lost": 0, "left": 0, "uncleaned": 0}
        half = points // 2
        step = max(3, 32 // half)  # back to before the names change, however few the points are
        along = [lines * point // half for point in range(half)]
        for last in (*along, *(lines - 1 - step * point for point in range(points - half))):
            jobs["old"]()
            assert digest(out / "bundle") == old
            code, _ = forked(jobs["new"], FILES, last)
            result["killed"] += code == -signal.SIGKILL
            funnel_export.load_bundle(out / "bundle")
            found = {old: "old", new: "new"}.get(digest(out / "bundle"), "lost")
            result[found] += 1
            result["left"] += len(list(out.iterdir())) > 1
            jobs["new"]()
            result["uncleaned"] += [path.name for path in out.iterdir()] != ["bundle"]
        return result


def export_at_once(rounds: int) -> dict[str, Any]:
    """Two exports to one folder at once: which of them is there in the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = prepare(folder)
        whole = {digest(folder / kind): kind for kind in ("old", "new")}
        out = folder / "out"
        result = {"rounds": rounds, "old": 0, "new": 0, "mixed": 0, "left": 0, "failed": 0}
        for number in range(rounds):
            if number % 2 == 0:
                subprocess.run(["rm", "-rf", str(out)], check=True)  # noqa: S607 - half of the rounds begin with nothing
            processes = [FORK.Process(target=job) for job in jobs.values()]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                result["failed"] += process.exitcode != 0
            result[whole.get(digest(out / "bundle"), "mixed")] += 1
            result["left"] += [path.name for path in out.iterdir()] != ["bundle"]
        return result


def kill_real_exports(points: int) -> dict[str, Any]:
    """Kill whole exports from the command line, each after a time of its own, and check what is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = save_tiny_checkpoint(folder / "checkpoint")
        out = folder / "out"
        command = [sys.executable, "-m", "funnel_export", "export", str(checkpoint), str(out / "bundle")]
        command += ["--task", "text-generation", "--funnel"]
        start = time.perf_counter()
        subprocess.run([*command, "1:3:2"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        old = digest(out / "bundle")
        result = {"points": points, "seconds": round(seconds, 1), "killed": 0, "old": 0, "new": 0, "left": 0}
        order = random.Random(0).sample(range(points), points)  # noqa: S311 - not for secrets
        for point in order:
            process = subprocess.Popen([*command, "1:3:3"], stdout=subprocess.DEVNULL)
            try:
                process.wait(seconds * (0.5 + 0.55 * point / points))  # before that nothing but imports
            except subprocess.TimeoutExpired:
                process.kill()
                result["killed"] += 1
            process.wait()
            made = funnel_export.load_bundle(out / "bundle")
            assert made.spec.funnel is not None
            result["old" if made.spec.funnel.stride == 2 else "new"] += 1
            assert made.spec.funnel.stride == 3 or digest(out / "bundle") == old
            result["left"] += len(list(out.iterdir())) > 1
            if made.spec.funnel.stride == 3:
                subprocess.run([*command, "1:3:2"], check=True, stdout=subprocess.DEVNULL)
        assert funnel_export.check(out / "bundle", targets=["onnxruntime"]).passed
        subprocess.run([*command, "1:3:2"], check=True, stdout=subprocess.DEVNULL)
        result["uncleaned"] = len(list(out.iterdir())) - 1
        return result


def main() -> None:
    """Kill, and print what was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--real", type=int)
    options = parser.parse_args()
    if options.real:
        print(json.dumps({"real": kill_real_exports(options.real)}))  # noqa: T201
        return
    killed = kill_at_lines(options.points)
    print(json.dumps({"killed": killed, "at_once": export_at_once(options.rounds)}))  # noqa: T201


if __name__ == "__main__":
    main()
