"""The pytest plugin, in a pytest of its own: what passes, what fails and how it is said, and the JUnit file."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from exported import Recipe
from test_benching import changed, own, slower
from verify.test_parity import another_softcap

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
    bundle, dense = changed(tmp_path, slower), Recipe(funnel=None).bundle()
    options = ("--funnel-min-speedup=1", f"--funnel-baseline={dense.path}")
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST, *options)
    assert done.returncode == 1
    assert "onnxruntime at batch 1, length 8: 0." in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_an_error_of_ours_speaks_for_itself(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    options = ("--funnel-min-speedup=1", f"--funnel-baseline={bundle.path}")
    done = run(tmp_path, f"--funnel-bundle={bundle.path}", *FAST, *options)
    assert done.returncode == 1
    assert "this is no dense bundle of the same weights" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert "benching.py" not in done.stdout


def test_fixtures_serve_tests_of_ones_own(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(funnel_bundle, funnel_parity):\n"
        "    assert funnel_bundle.manifest.spec.stride == 2\n"
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
        (["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--funnel-rounds=5"], "too few rounds for a gate"),
    ],
)
def test_what_cannot_be_ends_the_run_before_it_begins(arguments: list[str], said: str, tmp_path: Path) -> None:
    bundle = Recipe().bundle().path
    done = run(tmp_path, *(argument.format(bundle=bundle) for argument in arguments))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr
    assert "Traceback" not in done.stderr
