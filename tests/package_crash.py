"""Kills packaging of a bundle over an earlier model, for `packaging/test_triton.py`: prints JSON."""

import json
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from killing import digest, forked

from funnel_export import package
from funnel_export.packaging import triton, triton_files
from funnel_export.spec.triton import TritonOptions
from funnel_export.system import atomic, claims, filling, locks, place

FILES = {str(module.__file__) for module in (atomic, claims, filling, locks, place, triton, triton_files)}
POINTS = 12


def main() -> None:
    """Kill half of them all along the way, and half where names change; print what was left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs, whole = {}, {}
        for kind, size in (("old", 2), ("new", 4)):
            job = partial(package, sys.argv[1], name="m", options=TritonOptions(max_batch_size=size))
            whole[digest(job(folder / kind).path)] = kind
            jobs[kind] = partial(job, folder / "out")
        jobs["old"]()
        code, lines = forked(jobs["new"], FILES)
        assert code == 0
        result = {"killed": 0, "old": 0, "new": 0, "lost": 0, "uncleaned": 0}
        along = [lines * point // (POINTS // 2) for point in range(POINTS // 2)]
        for last in (*along, *(lines - 1 - 6 * point for point in range(POINTS // 2))):
            jobs["old"]()
            code, _ = forked(jobs["new"], FILES, last)
            result["killed"] += code == -signal.SIGKILL
            result[whole.get(digest(folder / "out" / "m"), "lost")] += 1
            jobs["new"]()
            result["uncleaned"] += [path.name for path in (folder / "out").iterdir()] != ["m"]
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
