"""Exports to folders that keep their names, for `hostile/test_mounts.py`, in a namespace of its own: prints JSON."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash import FILES, prepare
from killing import forked
from mounting import mount
from tiers import SOAK

from funnel_export import compile_bundle, export, load_bundle, package
from funnel_export.commands.demo import run_demo
from funnel_export.errors import FunnelExportError
from funnel_export.progress import no_progress
from funnel_export.system.filling import is_interrupted, recover

POINTS, STEP = (14, 10) if SOAK else (7, 20)
MANIFEST = "manifest.json"


def content(folder: Path) -> dict[str, str]:
    """Digests of all files by their names, but of those in hidden folders."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name: digest for name, digest in found.items() if not name.startswith(".")}


def message(job: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """What a job raises."""
    try:
        job(*arguments, **options)
    except FunnelExportError as err:
        return str(err)
    return ""


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[Path]:
    """Something that is mounted at the last argument, for a while."""
    mount(*arguments)
    try:
        yield Path(arguments[-1])
    finally:
        subprocess.run(["umount", "--recursive", str(arguments[-1])], check=True)  # noqa: S607


class Exports:
    """Two exports to `out`, and what each of them makes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out" / "bundle"
        self.jobs = prepare(folder)
        self.whole = {kind: content(folder / kind) for kind in ("old", "new")}
        self.out.mkdir(parents=True)

    def found(self) -> str:
        """Which of the two bundles is there; `none` without a manifest."""
        now = content(self.out)
        kinds = [kind for kind, whole in self.whole.items() if now == whole]
        return kinds[0] if kinds else "mixed" if MANIFEST in now else "none"

    def hidden(self) -> list[str]:
        """What an export has left."""
        return [path.name for path in self.out.iterdir() if path.name.startswith(".")]

    def export(self, kind: str) -> str:
        """Run one of them, and say what is there then."""
        self.jobs[kind]()
        load_bundle(self.out)
        assert self.hidden() == []
        return self.found()


def fill(exports: Exports) -> dict[str, Any]:
    """An empty mount gets a bundle, and then another one; the folder above is read-only all the time."""
    with mounted("-t", "tmpfs", "none", exports.out.parent):
        exports.out.mkdir()
        mount("-t", "tmpfs", "none", exports.out)
        mount("-o", "remount,ro", exports.out.parent)
        found = [exports.export(kind) for kind in ("old", "new")]
        (exports.out / "thesis.txt").write_text("the only copy")
        refused = message(exports.jobs["old"])
        kept = (exports.out / "thesis.txt").exists() and (exports.out / MANIFEST).exists()
        return {"found": found, "refused": refused, "kept": kept}


def fill_bind(exports: Exports) -> list[str]:
    """The same where both lie on one file system, so that links reach there but renames do not."""
    (exports.folder / "volume").mkdir()
    with mounted("--bind", exports.folder / "volume", exports.out):
        return [exports.export(kind) for kind in ("old", "new")]


def kill(exports: Exports) -> dict[str, int]:
    """Kill exports over an earlier bundle while its entries are moved."""
    result = {"killed": 0, "old": 0, "none": 0, "new": 0, "mixed": 0, "interrupted": 0, "lost": 0, "left": 0}
    with mounted("-t", "tmpfs", "none", exports.out):
        exports.export("old")
        _, lines = forked(exports.jobs["new"], FILES)
        for point in range(POINTS):
            exports.export("old")
            code, _ = forked(exports.jobs["new"], FILES, lines - 1 - STEP * point)
            result["killed"] += code == -signal.SIGKILL
            result[exports.found()] += 1
            result["interrupted"] += is_interrupted(exports.out)
            recover(exports.out, MANIFEST)  # as the next export begins
            result["lost"] += exports.found() not in exports.whole
            result["left"] += exports.hidden() != []
    return result


def fail(exports: Exports) -> dict[str, Any]:
    """One entry of the earlier bundle cannot be moved, since something is mounted at it: all stays."""
    with mounted("-t", "tmpfs", "none", exports.out):
        exports.export("old")
        with mounted("--bind", exports.out / "config.json", exports.out / "config.json"):
            error = message(exports.jobs["new"])
            return {"error": error, "found": exports.found(), "hidden": exports.hidden()}


def layer(exports: Exports) -> list[str]:
    """What an export over a bundle in a lower layer of an overlay, as of a container's image, says and leaves."""
    for name in ("lower/out", "upper", "work"):
        (exports.folder / name).mkdir(parents=True)
    options = ",".join(f"{name}dir={exports.folder / name}" for name in ("lower", "upper", "work"))
    exports.jobs["old"]()
    exports.out.rename(exports.folder / "lower" / "out" / "bundle")
    where = exports.out.parent
    with mounted("-t", "overlay", "-o", options, "none", where):
        return [message(exports.jobs["new"]), exports.found()]


def siblings(exports: Exports) -> dict[str, str]:
    """What other commands say of a mount in the place of the folder that they make, before any work."""
    model, engine = exports.folder / "models" / "m", exports.folder / "old" / "engines" / "e"
    for path in (model, engine):
        path.mkdir(parents=True)
        mount("-t", "tmpfs", "none", path)
    result = {
        "package": message(package, exports.folder / "old", model.parent, name="m"),
        "compile": message(compile_bundle, exports.folder / "old", "onnxruntime", name="e"),
    }
    with mounted("-t", "tmpfs", "-o", "ro", "none", exports.folder / "models"):
        result["read-only"] = message(package, exports.folder / "new", exports.folder / "models", name="m")
        result["demo"] = message(run_demo, exports.folder / "models", progress=no_progress)
        result["export"] = message(export, exports.folder / "checkpoint", exports.folder / "models")
    return result


def main() -> None:
    """Run all of it."""
    folder = Path(sys.argv[1]) / "mnt"
    mount("-t", "tmpfs", "none", folder)
    exports = Exports(folder)
    steps = (fill, fill_bind, kill, fail, siblings, layer)
    print(json.dumps({step.__name__: step(exports) for step in steps}))  # noqa: T201


if __name__ == "__main__":
    main()
