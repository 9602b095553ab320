"""The pytest plugin, in a pytest of its own: what passes, what fails and how it is said, and the JUnit file."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from breaks import another_softcap, changed, own, slower
from exported import Recipe

FAST = ("--funnel-target=onnxruntime", "--funnel-length=8", "--funnel-rounds=6", "--funnel-max-length=8")


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, without this project's settings."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_good_bundle_passes_and_junit_has_the_speedups(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    (tmp_path / "test_theirs.py").write_text("def test_not_asked_for(): assert False")
    done = run(
        tmp_path, f"--funnel-bundle={bundle.path}", *FAST, "--funnel-min-speedup=1e-6", "--junitxml=gates.xml", "-v"
    )
    assert done.returncode == 0, done.stdout
    assert "funnel_export/gates::test_parity[onnxruntime] PASSED" in done.stdout
    assert "2 passed" in done.stdout
    (suite,) = ET.parse(tmp_path / "gates.xml").getroot()  # noqa: S314 - pytest wrote it
    assert {case.get("classname") for case in suite.iter("testcase")} == {"funnel_export.gates"}
    (speedup,) = suite.iter("property")
    assert speedup.get("name") == "speedup of onnxruntime at batch 1, length 8"
    assert float(str(speedup.get("value")).split()[0]) > 0
    for report in ("parity.json", "latency.json"):
        assert (bundle.path / "reports" / report).is_file()


def test_a_broken_graph_fails_and_the_place_is_named(tmp_path: Path) -> None:
    bundle = changed(tmp_path, another_softcap)
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST)
    assert done.returncode == 1
    assert "onnxruntime first differs at layers.2" in done.stdout
    assert "1 failed, 1 skipped" in done.stdout
    assert "torch.__trace" not in done.stdout


def test_a_slower_funnel_fails_and_the_place_is_named(tmp_path: Path) -> None:
    bundle = changed(tmp_path, slower)
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST, "--funnel-min-speedup=1")
    assert done.returncode == 1
    assert "torch.__trace" not in done.stdout, "the dense baseline is traced while pytest listens"
    assert "onnxruntime at batch 1, length 8: 0." in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_an_error_of_ours_speaks_for_itself(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    (bundle.path / "reports").symlink_to(tmp_path)
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST)
    assert done.returncode == 1
    assert done.stdout.count("the bundle's reports lie elsewhere") in (1, 2), "the failure, and pytest's short summary"
    assert "1 skipped, 1 error" in done.stdout
    assert "check.py" not in done.stdout


@pytest.mark.parametrize(("options", "told"), [((), "warning: "), (("--numprocesses=2",), "FunnelExportWarning: ")])
def test_a_report_that_cannot_be_kept_is_no_verdict(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """Warnings are errors in these runs; this package's must not replace what the gate says."""
    bundle = own(tmp_path)
    (bundle.path / "reports").write_text("no folder")
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST, *options)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert f"{told}the report could not be kept in the bundle" in done.stdout


def test_a_target_that_is_asked_for_twice_is_one(tmp_path: Path) -> None:
    done = run(tmp_path, f"--funnel-bundle={own(tmp_path).path}", *FAST, "--funnel-target=onnxruntime")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout


def test_several_processes_do_not_time_at_once(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine(funnel_latency): pass")
    done = run(tmp_path, "test_mine.py", f"--funnel-bundle={own(tmp_path).path}", *FAST, "--numprocesses=2")
    assert done.returncode == 1
    assert "latency needs the machine for itself: run pytest without --numprocesses" in done.stdout
    assert "1 passed" in done.stdout, "parity may share it"


def test_fixtures_serve_tests_of_ones_own(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(funnel_bundle, funnel_parity):\n"
        "    assert funnel_bundle.spec.funnel.stride == 2\n"
        "    assert funnel_parity.targets[0].cases[0].metrics.top1 == 1.0\n"
    )
    done = run(tmp_path, "test_mine.py", f"--funnel-bundle={bundle.path}", *FAST)
    assert done.returncode == 0, done.stdout
    assert "2 passed, 1 skipped" in done.stdout
    without = run(tmp_path, "test_mine.py")
    assert without.returncode == 0
    assert "1 skipped" in without.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--funnel-bundle=nowhere"], "there is no bundle here"),
        (["--funnel-bundle={bundle}", "--funnel-target=tpu"], "unknown target"),
        (["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--numprocesses=2"], "without --numprocesses"),
        (
            ["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--dist=each", "--tx=2*popen"],
            "without --numprocesses",
        ),
        (["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--funnel-rounds=5"], "too few rounds for an interval"),
        (["--funnel-bundle={bundle}", "--funnel-length=0"], "length of a check is at least 1"),
        (["--funnel-bundle={bundle}", "--funnel-max-length=0"], "max_length of a check is at least 1"),
        (["--funnel-bundle={dense}", "--funnel-min-speedup=1"], "a dense bundle has nothing to be compared with"),
    ],
)
def test_what_cannot_be_ends_the_run_before_it_begins(arguments: list[str], said: str, tmp_path: Path) -> None:
    bundle, dense = Recipe().bundle().path, Recipe(funnel=None).bundle().path
    done = run(tmp_path, *(argument.format(bundle=bundle, dense=dense) for argument in arguments))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr
    assert "Traceback" not in done.stderr
