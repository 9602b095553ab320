"""Reports outside the bundle, and read-only bundles."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from breaks import own
from latencies import make_latency, make_parity, put
from tamper import listing

from funnel_export import Bundle, check
from funnel_export.errors import FunnelExportWarning, SpecError
from funnel_export.report.pages import keep_report, write_reports

QUICK = ("--target", "onnxruntime", "--max-length", "2")
# Root can write everywhere unless it drops this capability.
AS_USER = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


def run_as_user(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `funnel-export` without root's capability to write into read-only folders."""
    command = [*AS_USER, sys.executable, "-m", "funnel_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def read_only(bundle: Bundle) -> object:
    """A bundle that was checked once and is now read-only."""
    if AS_USER and not shutil.which(AS_USER[0]):
        pytest.skip("root can write everywhere, and setpriv is not installed")
    check(bundle, targets=["onnxruntime"], max_length=3)
    folders = [bundle.path, bundle.path / "reports"]
    for folder in folders:
        folder.chmod(0o555)
    yield bundle
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.slow
def test_a_read_only_bundle_warns_once_with_a_hint(read_only: Bundle) -> None:
    done = run_as_user("check", read_only.path, *QUICK)
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1
    assert "the report could not be kept in the bundle: Permission denied" in done.stderr
    earlier = "parity.json, report.md, report.html, funnel.png, boundaries.png, ranges.png"
    assert f"files of an earlier run could not be removed: {earlier}; try --reports DIR" in done.stderr


def test_only_files_that_are_there_are_said_to_be_left(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only file system refuses to remove files that do not exist, too."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (bundle.path / "reports").mkdir()
    (bundle.path / "reports" / "report.html").write_text("earlier")
    monkeypatch.setattr("funnel_export.report.pages.write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(FunnelExportWarning, match="could not be kept in the bundle: Read-only file system") as told:
        keep_report(bundle, "parity.json", make_parity(bundle), bundle.path / "reports")
    assert "files of an earlier run could not be removed: report.html; try" in str(told[0].message)


@pytest.mark.slow
def test_reports_of_a_read_only_bundle_in_another_folder(read_only: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run_as_user("report", read_only.path, "--reports", out)
    assert done.returncode == 0, done.stderr
    assert {Path(line).parent for line in done.stdout.splitlines()} == {out}
    assert "onnxruntime" in (out / "report.md").read_text(), "what `check` wrote into the bundle is shown"
    shutil.rmtree(out)
    done = run_as_user("check", read_only.path, *QUICK, "--reports", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"parity.json", "report.md", "report.html"} <= {path.name for path in out.iterdir()}


def test_check_writes_only_into_the_requested_folder(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for _ in range(2):  # the second run replaces its own files
        check(bundle, targets=["onnxruntime"], max_length=2, reports=out)
    assert (out / "parity.json").is_file()
    assert (out / "notes.txt").read_text() == "mine"
    assert not (bundle.path / "reports").exists()
    put(bundle, make_latency(bundle))
    assert out / "latency.png" in write_reports(bundle, out)


@pytest.mark.parametrize("content", ['{"name": "mine"}', '{"schema_version": 1, "name": "mine"}'])
@pytest.mark.parametrize("name", ["report.html", "latency.png", "parity.json", "latency.json"])
def test_other_files_with_the_names_of_reports_are_left_unchanged(
    name: str, content: str, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(SpecError, match=rf"(?s)has the name of a report but is not one.*{name}"):
        check(bundle, targets=["onnxruntime"], max_length=2, reports=out)
    with pytest.raises(SpecError, match="has the name of a report but is not one"):
        write_reports(bundle, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: content}


def test_an_invalid_folder_is_refused_before_anything_runs(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match="the folder for reports cannot be written"):
        check(bundle, reports=tmp_path / "file")
    for inside in (bundle.path, bundle.path / "engines" / "mine"):
        with pytest.raises(SpecError, match="is inside the bundle"):
            check(bundle, reports=inside)
    assert not (bundle.path / "engines").exists()


def test_reports_of_another_bundle_are_left_unchanged(bundle: Bundle, tmp_path: Path) -> None:
    other = own(tmp_path / "other")
    check(other, targets=["onnxruntime"], max_length=2)
    before = listing(other.path)
    for folder in (other.path / "reports", other.path / "new"):
        with pytest.raises(SpecError, match="is inside another bundle"):
            check(bundle, targets=["onnxruntime"], max_length=2, reports=folder)
    assert listing(other.path) == before


def test_the_bundles_own_folder_may_be_requested(bundle: Bundle) -> None:
    check(bundle, targets=["onnxruntime"], max_length=2, reports=bundle.path / "reports")
    assert (bundle.path / "reports" / "parity.json").is_file()


def test_a_failed_write_names_the_requested_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(f"read-only: {path}")

    monkeypatch.setattr("funnel_export.report.pages.write_text", refuse)
    with pytest.warns(FunnelExportWarning, match=f"could not be kept in {tmp_path / 'out'}"):
        check(own(tmp_path / "other"), targets=["onnxruntime"], max_length=2, reports=tmp_path / "out")
