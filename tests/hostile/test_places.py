"""Outputs that cannot be written, or must not be: what was there stays byte for byte, and nothing is left beside it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run
from fuzz.watch import listing
from mounting import namespace
from tiers import LONG

from funnel_export import bench, check, compile_bundle, export, load_bundle
from funnel_export.errors import BundleError

READY = Path(__file__).with_name("ready_graph.py")


def command(folder: Path, out: str) -> list[str]:
    """An export of the checkpoint, copying its weights."""
    arguments = ["export", str(folder / "checkpoint"), out, "--funnel", "1:3:2", "--task", "text-generation"]
    arguments += ["--weights", "copy"]
    return [sys.executable, str(READY), str(folder / "made" / "model.onnx"), *arguments]


def test_a_folder_with_the_users_own_files_is_not_replaced(ready: None, folder: Path) -> None:
    (folder / "made" / "thesis.txt").write_text("the only copy")
    before = listing(folder)
    with pytest.raises(BundleError, match="holds something else"):
        export(folder / "checkpoint", folder / "made", funnel="1:3:2", task="text-generation")
    assert listing(folder) == before


def link_farm(folder: Path) -> tuple[Path, Path]:
    """A checkpoint whose files are links into the bundle that the export would replace."""
    (folder / "farm").mkdir()
    for path in (folder / "made").iterdir():
        (folder / "farm" / path.name).symlink_to(path)
    return folder / "farm", folder / "made"


def inside_a_bundle(folder: Path) -> tuple[Path, Path]:
    (folder / "made" / "reports").mkdir(exist_ok=True)
    (folder / "checkpoint").rename(folder / "made" / "reports" / "checkpoint")
    return folder / "made" / "reports" / "checkpoint", folder / "made"


def through_a_link(folder: Path) -> tuple[Path, Path]:
    (folder / "name").symlink_to(folder)
    return folder / "made", folder / "name" / "made"


@pytest.mark.parametrize(
    "places",
    [lambda f: (f / "made", f / "made"), through_a_link, inside_a_bundle, link_farm],
    ids=["equal", "through a link", "inside a bundle", "links into it"],
)
def test_the_checkpoint_is_not_replaced(places: Callable[[Path], tuple[Path, Path]], ready: None, folder: Path) -> None:
    source, out = places(folder)
    before = listing(folder)
    with pytest.raises(BundleError, match="would replace the checkpoint"):
        export(source, out, funnel="1:3:2", task="text-generation")
    assert listing(folder) == before


def test_the_checkpoint_is_not_written_over(ready: None, folder: Path) -> None:
    before = listing(folder)
    with pytest.raises(BundleError, match="would replace the checkpoint"):
        export(folder / "checkpoint", folder / "checkpoint", funnel="1:3:2", task="text-generation")
    assert listing(folder) == before


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_a_new_folder_inside_the_checkpoint_leaves_its_files(weights: str, ready: None, folder: Path) -> None:
    """As models on the Hub keep their ONNX graphs."""
    before = listing(folder / "checkpoint")
    made = export(
        folder / "checkpoint", folder / "checkpoint" / "onnx", funnel="1:3:2", task="text-generation", weights=weights
    )
    assert load_bundle(made.path).manifest == made.manifest
    shutil.rmtree(made.path)
    assert listing(folder / "checkpoint") == before


SCRIPT = """
set -e
mount -t tmpfs -o size={size}k none "$0/mnt"
cp -r "$0/made" "$0/mnt/out"
{then}
state() {{ ls -A "$0/mnt"; cd "$0/mnt/out"; find . -type f | sort | xargs sha256sum; stat -c '%n %Y %s' *; cd /; }}
state > "$0/before"
set +e
"$@"
echo "exit $?"
state > "$0/after"
"""


@pytest.mark.parametrize(
    ("then", "message"),
    [
        pytest.param("", "not enough space on the disk", id="no space", marks=LONG),  # as in `test_room.py`
        pytest.param('mount -o remount,ro "$0/mnt"', "Read-only file system", id="read-only"),
    ],
)
def test_a_file_system_that_takes_no_more(then: str, message: str, folder: Path) -> None:
    (folder / "mnt").mkdir()
    size = sum(path.stat().st_size for path in (folder / "made").rglob("*") if path.is_file()) // 1024 + 150
    done = namespace(SCRIPT.format(size=size, then=then), folder, *command(folder, str(folder / "mnt" / "out")))
    assert done.stdout == "exit 2\n"
    assert message in done.stderr
    assert "wanted: " in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "before").read_text().startswith("out\n")
    assert (folder / "after").read_text() == (folder / "before").read_text()


def without_power() -> list[str]:
    """A prefix that takes from root the power to write where permissions forbid it; nothing for other users."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("root may write anywhere, and setpriv cannot take that away here")
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("out", ["closed/out", pytest.param("closed/new/out", marks=LONG)])
def test_no_permission(out: str, folder: Path) -> None:
    closed = folder / "closed"
    shutil.copytree(folder / "made", closed / "out")
    before = listing(closed)
    for path in (closed / "out", closed):
        path.chmod(0o555)
    started = [*without_power(), *command(folder, str(folder / out))]
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    for path in (closed, closed / "out"):
        path.chmod(0o755)
    assert done.returncode == 2
    assert "Permission denied" in done.stderr
    assert "  try: /" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(closed) == before


@pytest.mark.slow
def test_a_folder_of_ones_own_in_a_closed_one_is_filled(folder: Path) -> None:
    """As /srv/out, which an administrator made for a user."""
    (folder / "closed" / "out").mkdir(parents=True)
    (folder / "closed").chmod(0o555)
    started = [*without_power(), *command(folder, str(folder / "closed" / "out"))]
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    (folder / "closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert load_bundle(folder / "closed" / "out").spec == load_bundle(folder / "made").spec
    assert [path.name for path in (folder / "closed").iterdir()] == ["out"]


HALF_WRITTEN = """
import runpy, sys, time
from funnel_export.exporter import write
write._manifest = lambda *_: (print("half written", flush=True), time.sleep(60))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""Runs a script; its export says when all but the manifest is there, and goes no further."""


@pytest.mark.slow
def test_an_export_that_is_asked_to_end(folder: Path) -> None:
    before = listing(folder)
    python, *arguments = command(folder, str(folder / "made"))
    with subprocess.Popen([python, "-c", HALF_WRITTEN, *arguments], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "half written\n"
        (partial,) = folder.glob(".made.partial-*")
        assert (partial / "model.safetensors").exists()
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    assert listing(folder) == before


def test_a_folder_whose_name_is_no_text(ready: None, folder: Path) -> None:
    """File names are bytes; one that is not UTF-8 is escaped wherever it is written or printed."""
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/odd \xff\x1b[31m\nname"))
    (folder / "checkpoint").rename(odd)
    made = export(odd, folder / "out", funnel="1:3:2", task="text-generation")
    assert made.manifest.source == f"{folder}/odd \\xff\x1b[31m\nname"
    inspected = run("inspect", folder / "out")
    assert inspected.returncode == 0
    shown = inspected.stdout
    assert "odd \\xff\\u001b[31m" in shown
    assert shown.replace("\n", "").isprintable()
    (folder / "out").rename(odd / "out")
    for work in (check, bench, lambda bundle: compile_bundle(bundle, "onnxruntime")):
        with pytest.raises(BundleError, match=r"(?s)a path that is not UTF-8.*odd \\udcff.*rename the folder"):
            work(odd / "out")
    done = subprocess.run(command(odd, str(folder / "new")), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "odd \\udcff\\u001b[31m\n    name/checkpoint" in done.stderr
