"""Reports in another folder than the bundle's, and a bundle that cannot be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from breaks import own
from latencies import make_latency, put

from funnel_export import Bundle, check
from funnel_export.errors import FunnelExportWarning, SpecError
from funnel_export.report.pages import write_reports

QUICK = ("--target", "onnxruntime", "--max-length", "2")
# Root may write everywhere unless it gives that up.
AS_USER = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


def run_as_user(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `funnel-export` without root's right to write into a folder that forbids it."""
    command = [*AS_USER, sys.executable, "-m", "funnel_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def read_only(bundle: Bundle) -> object:
    """A bundle that was checked once and cannot be written any more."""
    if AS_USER and not shutil.which(AS_USER[0]):
        pytest.skip("root may write everywhere, and there is no setpriv")
    check(bundle, targets=["onnxruntime"], max_length=3)
    folders = [bundle.path, bundle.path / "reports"]
    for folder in folders:
        folder.chmod(0o555)
    yield bundle
    for folder in folders:
        folder.chmod(0o755)


def test_a_read_only_bundle_warns_once_and_says_what_to_do(read_only: Bundle) -> None:
    done = run_as_user("check", read_only.path, *QUICK)
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1
    assert "the report could not be kept in the bundle: Permission denied" in done.stderr
    assert "try --reports DIR" in done.stderr


def test_reports_of_a_read_only_bundle_go_elsewhere(read_only: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run_as_user("report", read_only.path, "--reports", out)
    assert done.returncode == 0, done.stderr
    assert {Path(line).parent for line in done.stdout.splitlines()} == {out}
    assert "onnxruntime" in (out / "report.md").read_text(), "what `check` wrote into the bundle is shown"
    shutil.rmtree(out)
    done = run_as_user("check", read_only.path, *QUICK, "--reports", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"parity.json", "report.md", "report.html"} <= {path.name for path in out.iterdir()}


def test_check_writes_there_and_not_into_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for _ in range(2):  # the second replaces its own
        check(bundle, targets=["onnxruntime"], max_length=2, reports=out)
    assert (out / "parity.json").is_file()
    assert (out / "notes.txt").read_text() == "mine"
    assert not (bundle.path / "reports").exists()
    put(bundle, make_latency(bundle))
    assert out / "latency.png" in write_reports(bundle, out)


@pytest.mark.parametrize("name", ["report.html", "latency.png", "parity.json"])
def test_other_files_of_these_names_are_left_alone(name: str, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"name": "mine"}')
    with pytest.raises(SpecError, match=rf"(?s)another file of that name.*{name}"):
        check(bundle, targets=["onnxruntime"], max_length=2, reports=out)
    with pytest.raises(SpecError, match="another file of that name"):
        write_reports(bundle, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: '{"name": "mine"}'}


def test_a_folder_that_cannot_be_is_refused_before_anything_runs(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match="cannot be written there"):
        check(bundle, reports=tmp_path / "file")
    for inside in (bundle.path, bundle.path / "engines" / "mine"):
        with pytest.raises(SpecError, match="among the bundle's files"):
            check(bundle, reports=inside)
    assert not (bundle.path / "engines").exists()


def test_the_bundles_own_folder_may_be_named(bundle: Bundle) -> None:
    check(bundle, targets=["onnxruntime"], max_length=2, reports=bundle.path / "reports")
    assert (bundle.path / "reports" / "parity.json").is_file()


def test_a_folder_that_is_lost_meanwhile_is_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(f"read-only: {path}")

    monkeypatch.setattr("funnel_export.report.pages.write_text", refuse)
    with pytest.warns(FunnelExportWarning, match=f"could not be kept in {tmp_path / 'out'}"):
        check(own(tmp_path / "other"), targets=["onnxruntime"], max_length=2, reports=tmp_path / "out")
