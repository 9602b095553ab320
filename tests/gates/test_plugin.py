"""The pytest plugin, run in a separate pytest: passes, failures and their messages, and the JUnit file."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from breaks import another_softcap, changed, own, slower, wide_window
from exported import Recipe

from funnel_export import Quantization, compile_bundle

# Imported for `imported`.
from funnel_export.commands import bench  # noqa: F401
from funnel_export.commands.check import compare
from funnel_export.latency import trials, verdict  # noqa: F401
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.report import pages, text  # noqa: F401
from funnel_export.targets.onnxruntime import OnnxRuntimeTarget
from funnel_export.targets.openvino import OpenVinoTarget

pytest_plugins = ["pytester"]

SETTINGS = ("-p", "no:cacheprovider", "-W", "error")
FAST = (
    *("--funnel-target=onnxruntime", "--funnel-pytorch=none"),
    *("--funnel-length=8", "--funnel-rounds=6", "--funnel-max-length=8"),
)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import everything that the gates use: pytester unloads what a run imports, and torch cannot be imported twice."""
    compare(Recipe().bundle(), max_length=1)


def run(pytester: pytest.Pytester, *arguments: object) -> tuple[int, str, str]:
    """Run pytest in its own folder without this project's settings; return exit code, stdout and stderr."""
    done = pytester.runpytest_inprocess(*SETTINGS, *map(str, arguments))
    return int(done.ret), done.stdout.str(), done.stderr.str()


def test_a_quantized_bundle_has_a_gate_of_its_own(pytester: pytest.Pytester) -> None:
    recipe = Recipe(quantization=Quantization(bits=8))
    bundle = own(pytester.path, recipe)
    options = (f"--funnel-bundle={bundle.path}", *FAST, f"--funnel-unquantized={recipe.checkpoint()}", "-v")
    code, out, _ = run(pytester, *options)
    assert code == 0, out
    assert "funnel_export/gates::test_quantization PASSED" in out
    code, out, _ = run(pytester, *options, "--funnel-max-kl=1e-9")
    assert code == 1
    assert "test_parity[onnxruntime] PASSED" in out
    assert "FAILED: the mean KL divergence on the batches of the check is" in out
    code, _, err = run(pytester, *options, f"--funnel-unquantized={bundle.path}")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "quantized already" in err


def test_a_good_bundle_passes_and_junit_has_the_speedups(pytester: pytest.Pytester) -> None:
    bundle = own(pytester.path)
    pytester.makepyfile(test_theirs="def test_not_asked_for(): assert False")
    options = (f"--funnel-bundle={bundle.path}", *FAST, "--funnel-min-speedup=1e-6", "--junitxml=gates.xml", "-v")
    code, out, _ = run(pytester, *options, "--funnel-pytorch=eager")
    assert code == 0, out
    assert "funnel_export/gates::test_parity[onnxruntime] PASSED" in out
    assert "2 passed" in out
    (suite,) = ET.parse(pytester.path / "gates.xml").getroot()  # noqa: S314 - pytest wrote it
    assert {case.get("classname") for case in suite.iter("testcase")} == {"funnel_export.gates"}
    (speedup,) = suite.iter("property")
    assert speedup.get("name") == "speedup of onnxruntime at batch 1, length 8"
    assert float(str(speedup.get("value")).split()[0]) > 0
    assert (bundle.path / "reports" / "parity.json").is_file()
    report = LatencyReport.model_validate_json((bundle.path / "reports" / "latency.json").read_text())
    assert {row.runtime for row in report.rows} == {"eager", "onnxruntime"}


def test_a_broken_graph_fails_with_its_place(pytester: pytest.Pytester) -> None:
    bundle = changed(pytester.path, another_softcap)
    code, out, _ = run(pytester, f"--funnel-bundle={bundle.path}", *FAST)
    assert code == 1
    assert "onnxruntime first differs at layers.2" in out
    assert "1 failed, 1 skipped" in out
    assert "torch.__trace" not in out


def test_one_engine_with_reports_in_another_folder(pytester: pytest.Pytester) -> None:
    bundle = own(pytester.path)
    compile_bundle(bundle, "onnxruntime", name="mine")
    out = pytester.path / "out"
    options = ("--funnel-engine=mine", "--funnel-max-length=2", f"--funnel-reports={out}")
    code, printed, _ = run(pytester, f"--funnel-bundle={bundle.path}", *options, "-v")
    assert code == 0, printed
    assert "test_parity[mine] PASSED" in printed
    assert "1 passed, 1 skipped" in printed
    assert (out / "parity.json").is_file()
    assert not (bundle.path / "reports").exists()


@pytest.mark.slow
def test_a_slower_funnel_fails_with_its_place(tmp_path: Path) -> None:
    """In a separate process, as in CI, because torch's logging depends on who imported it first."""
    bundle = changed(tmp_path, slower)
    command = [sys.executable, "-m", "pytest", *SETTINGS, f"--funnel-bundle={bundle.path}", *FAST]
    done = subprocess.run(
        [*command, "--funnel-min-speedup=1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "torch.__trace" not in done.stdout, "the dense baseline is traced while pytest captures logs"
    assert "onnxruntime at batch 1, length 8: 0." in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_errors_of_the_package_have_no_traceback(pytester: pytest.Pytester) -> None:
    bundle = own(pytester.path)
    (bundle.path / "reports").symlink_to(pytester.path)
    code, out, _ = run(pytester, f"--funnel-bundle={bundle.path}", *FAST)
    assert code == 1
    assert out.count("the bundle's `reports` is a symbolic link") in (1, 2), "the failure, and pytest's short summary"
    assert "1 skipped, 1 error" in out
    assert "check.py" not in out


def test_a_report_that_cannot_be_written_fails_no_gate(pytester: pytest.Pytester) -> None:
    """These runs turn warnings into errors; this package's own must not fail a gate."""
    bundle = own(pytester.path)
    (bundle.path / "reports").write_text("no folder")
    code, out, _ = run(pytester, f"--funnel-bundle={bundle.path}", *FAST, "--funnel-target=onnxruntime")
    assert code == 0, out
    assert "1 passed, 1 skipped" in out, "a target that is named twice is tested once"
    assert "warning: the report could not be kept in the bundle" in out


@pytest.mark.slow
def test_a_projects_own_tests_can_use_the_fixtures(pytester: pytest.Pytester) -> None:
    """In a worker of pytest-xdist, parity runs and latency is refused; a warning there fails nothing either."""
    bundle = own(pytester.path)
    (bundle.path / "reports").write_text("no folder")
    pytester.makepyfile(
        test_mine="def test_mine(funnel_bundle, funnel_parity):\n"
        "    assert funnel_bundle.spec.funnel.stride == 2\n"
        "    assert funnel_parity.targets[0].cases[0].metrics.top1 == 1.0\n"
        "def test_latency(funnel_latency): pass\n"
    )
    code, out, _ = run(pytester, "test_mine.py", f"--funnel-bundle={bundle.path}", *FAST, "--numprocesses=1")
    assert code == 1
    assert "other processes would disturb the timing of --funnel-min-speedup: run pytest without --numprocesses" in out
    assert "test_mine.py::test_latency" in out
    assert "2 passed, 1 skipped, 1 warning, 1 error" in out
    assert "FunnelExportWarning: the report could not be kept in the bundle" in out
    code, out, _ = run(pytester, "test_mine.py")
    assert code == 0
    assert "2 skipped" in out


def test_a_projects_settings_do_not_hide_the_gates(pytester: pytest.Pytester) -> None:
    """Gates run whatever a project names its tests; if a mark deselects them, the summary says so."""
    bundle = changed(pytester.path, another_softcap)
    pytester.makeini("[pytest]\npython_files = check_*.py\npython_functions = check_*\nmarkers = unit: of theirs\n")
    theirs = pytester.path / "check_theirs.py"
    theirs.write_text("import pytest\n@pytest.mark.unit\ndef check_theirs(): pass\n")
    options = (f"--funnel-bundle={bundle.path}", *FAST)
    code, out, _ = run(pytester, theirs, *options)
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped" in out
    assert out.count("warning: parity left out as too long: ") == 0
    _, out, _ = run(pytester, theirs, *options, "-m", "unit")
    assert "1 passed, 2 deselected" in out
    assert f"warning: this run has no gate of {bundle.path}" in out


def test_lengths_that_parity_left_out_are_named(pytester: pytest.Pytester) -> None:
    """Rows within the sliding window do not show that the window is wrong."""
    bundle = changed(pytester.path, wide_window)
    options = (f"--funnel-bundle={bundle.path}", "--funnel-target=onnxruntime", "--funnel-max-length=4")
    code, out, _ = run(pytester, *options)
    assert code == 0, out
    assert "warning: parity left out as too long: 5, 6, 8" in out


def test_an_engine_that_is_left_out_is_named_once(pytester: pytest.Pytester) -> None:
    """The plugin looks for engines before the tests, and `check` again."""
    bundle = own(pytester.path)
    (bundle.path / "engines" / "spoiled").mkdir(parents=True)
    (bundle.path / "engines" / "spoiled" / "manifest.json").write_text("{")
    code, out, _ = run(pytester, f"--funnel-bundle={bundle.path}", *FAST)
    assert code == 0, out
    assert out.count("warning: an engine is left out: ") == 1


def test_a_machine_without_any_target_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (OnnxRuntimeTarget, OpenVinoTarget):
        monkeypatch.setattr(target, "supports", lambda *_: "it is another machine")
    code, _, err = run(pytester, f"--funnel-bundle={Recipe().bundle().path}")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no target here runs" in err


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
        (
            ["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--funnel-rounds=5"],
            "too few rounds for a 95 % interval",
        ),
        *((["--funnel-bundle={bundle}", f"--funnel-min-speedup={x}"], "positive") for x in ("nan", "inf", "0", "-1")),
        (["--funnel-bundle="], "there is no bundle here"),
        (["--funnel-bundle={bundle}", "--funnel-target="], "unknown target"),
        (["--funnel-bundle={bundle}", "--funnel-engine=gone"], "the bundle has no such engine"),
        (["--funnel-bundle={bundle}", "--funnel-reports=/dev/null"], "the folder for reports cannot be written"),
        (["--funnel-bundle={bundle}", "--funnel-length=0"], "invalid length"),
        (["--funnel-bundle={bundle}", "--funnel-min-speedup=1", "--funnel-pytorch=torch.compile"], "eager beside it"),
        (["--funnel-bundle={bundle}", "--funnel-max-length=0"], "invalid max_length"),
        (["--funnel-bundle={dense}", "--funnel-min-speedup=1"], "the bundle has no funnel"),
    ],
)
def test_invalid_options_end_the_run_before_any_test(
    arguments: list[str], said: str, pytester: pytest.Pytester
) -> None:
    bundle, dense = Recipe().bundle().path, Recipe(funnel=None).bundle().path
    code, _, err = run(pytester, *(argument.format(bundle=bundle, dense=dense) for argument in arguments))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert said in err
    assert "Traceback" not in err
