"""The command line: what it prints, where, and with which exit code."""

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from breaks import another_softcap, changed
from command_line import Done, call, run, run_alone
from exported import Recipe
from tiers import slow

from funnel_export import cli, load_bundle
from funnel_export.errors import FunnelExportWarning


@pytest.mark.parametrize("start", [run, slow(run_alone)], ids=["in this process", "in its own"])
def test_export_inspect_check(start: Callable[..., Done], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = ("--funnel", "1:3:2", "--task", "text-generation", "--pooling", "max", "--recovery", "add")
    made = start("export", Recipe().checkpoint(), out, *options)
    assert (made.returncode, made.stderr) == (0, "")
    assert load_bundle(out).spec.funnel.to_dict() | {"pooling": "max", "recovery": "add"} == (
        load_bundle(out).spec.funnel.to_dict()
    )
    shown = run("inspect", out)
    assert shown.returncode == 0
    for part in ("entry", "layers 1-2", "max of 2 tokens", "recover: add", "8192", "GFLOP"):
        assert part in shown.stdout
    graph = run("inspect", out, "--graph")
    assert graph.returncode == 0
    assert "  funnel.pooled = funnel/pool(" in graph.stdout
    assert json.loads(run("inspect", out, "--graph", "--json").stdout)["graphs"]["model"].rstrip() == (
        graph.stdout.rstrip()
    )
    facts = json.loads(run("inspect", out, "--json").stdout)
    assert [row["length"] for row in facts["predicted"]] == [128, 512, 2048, 8192]
    assert facts["manifest"]["funnel"]["pooling"] == "max"
    assert facts["audit"] == []
    checked = run("check", out, "--target", "onnxruntime", "--length", 9)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "onnxruntime" in checked.stdout.splitlines()[2]
    limits, largest = checked.stdout.splitlines()[-2:]
    assert limits.startswith("limits: ")
    assert largest.startswith("largest value: ")
    assert json.loads(run("check", out, "--target", "onnxruntime", "--json").stdout)["passed"] is True


def test_a_failed_gate_exits_with_1(tmp_path: Path) -> None:
    """The graph has a wrong softcap."""
    bundle = changed(tmp_path, another_softcap)
    checked = run("check", bundle.path, "--target", "onnxruntime")
    assert checked.returncode == 1
    assert "FAILED" in checked.stdout
    as_json = run("check", bundle.path, "--target", "onnxruntime", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3"), 2, "pool_layer:recover_layer:stride"),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:9:2"), 2, "beyond the model's layers"),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3:2", "--lookahead"), 2, "cannot generate text"),
        (("export", "CHECKPOINT", "OUT", "--pooling", "max"), 2, "pooling without a funnel"),
        (("export", "CHECKPOINT", "OUT"), 2, "--funnel 1:3:2"),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3:2", "--dtype", "int4"), 2, "bfloat16'"),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3:2", "--pooling", "sum"), 2, "--pooling"),
        (("export", "nowhere", "OUT", "--funnel", "1:3:2"), 2, "checkpoint not found"),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3:2", "--block", "32"), 2, "without --bits"),
        (("quantize", "BUNDLE", "OUT", "--bits", "3"), 2, "cannot have this number of bits"),
        (("quantize", "nowhere", "OUT"), 2, "no bundle here"),
        (("inspect", "nowhere"), 2, "no bundle here"),
        (("check", "BUNDLE", "--target", "nonesuch"), 2, "unknown target"),
        (("check", "BFLOAT16", "--target", "onnxruntime"), 3, "no bfloat16 kernels"),
        (("compile", "BFLOAT16", "--target", "onnxruntime"), 3, "--dtype float32, and with --bits 8"),
        (("compile", "nowhere", "--target", "onnxruntime", "--option", "fast"), 2, "an option has no value"),
        (("compile", "nowhere", "--target", "nonesuch"), 2, "no bundle here"),
        (("nonesuch",), 2, "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    places = {"CHECKPOINT": Recipe().checkpoint(), "OUT": tmp_path / "out"}
    if "BUNDLE" in arguments:
        places["BUNDLE"] = Recipe().bundle().path
    if "BFLOAT16" in arguments:
        places["BFLOAT16"] = Recipe(dtype="bfloat16").bundle().path
    done = run(*(places.get(a, a) for a in arguments))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_internal_error_exits_with_70() -> None:
    code = (
        "from funnel_export.cli import main; from funnel_export.commands import inspect as i; i.inspect = None; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "inspect", "B"], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback")
    assert "TypeError" in done.stderr
    assert done.stdout == ""


def test_warnings_are_one_line(tmp_path: Path) -> None:
    checkpoint = Recipe().checkpoint()
    done = run("export", checkpoint, tmp_path / "out", "--funnel", "none", "--dtype", "float16", "--json")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: Gemma2 is known to overflow in float16; bfloat16 is the safe choice, "
        "and funnel-export check shows whether this model overflows\n"
    )
    assert json.loads(done.stdout)["dtype"] == "float16"


def test_doctor() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert "CPUExecutionProvider" in done.stdout
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["targets"]["onnxruntime"]["available"] is True
    assert facts["packages"]["torch"]


def test_doctor_without_a_runtime() -> None:
    hidden = "import sys; sys.modules['onnxruntime'] = sys.modules['openvino'] = None; "
    code = hidden + "sys.argv = ['funnel-export', 'doctor', '--json']; from funnel_export.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    targets = json.loads(done.stdout)["targets"]
    assert not any(target["available"] for target in targets.values())
    assert "pip install 'openvino>=2026.0'" in targets["openvino"]["hint"]


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"funnel-export {version('funnel-export')}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("inspect", "nowhere"), 2, {"what": "there is no bundle here"}),
        (("export", "CHECKPOINT", "OUT", "--funnel", "1:3"), 2, {"got": "'1:3'", "hint": "--funnel 6:20:2"}),
        (("export", "CHECKPOINT"), 2, {"what": "invalid command line", "hint": "--help"}),
        (("check", "BFLOAT16", "--target", "onnxruntime"), 3, {"what": "onnxruntime cannot run a bfloat16 graph here"}),
    ],
    ids=str,
)
def test_errors_are_json_with_the_json_option(
    arguments: tuple[str, ...], code: int, error: dict[str, str], tmp_path: Path
) -> None:
    places = {"CHECKPOINT": Recipe().checkpoint(), "OUT": tmp_path / "out"}
    if "BFLOAT16" in arguments:
        places["BFLOAT16"] = Recipe(dtype="bfloat16").bundle().path
    done = run(*(places.get(each, each) for each in arguments), "--json")
    assert done.returncode == code
    told = json.loads(done.stdout)
    assert told["exit_code"] == code
    assert list(told["error"]) == ["what", "got", "wanted", "hint"]
    assert told["error"] == told["error"] | error
    assert done.stderr


def test_an_internal_error_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.commands.inspect.inspect", None)
    done = run("inspect", "B", "--json")
    assert done.returncode == 70
    assert json.loads(done.stdout)["error"]["what"].startswith("internal error: TypeError")


def _deliver(number: signal.Signals) -> None:
    """What the handler of a signal does. Python's own for SIGINT may have been replaced in a worker of pytest-xdist."""
    handler = signal.default_int_handler if number == signal.SIGINT else signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


@pytest.mark.parametrize(
    ("number", "code", "what"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
@pytest.mark.parametrize("place", ["funnel_export.commands.inspect.inspect", "funnel_export.cli.get_command"])
def test_a_signal_ends_a_command_with_its_own_code(
    number: signal.Signals, code: int, what: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, lambda *_: _deliver(number))
    done = run("inspect", "B")
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    done = run("inspect", "B", "--json")
    assert done.returncode == code
    parts = {"what": what, "got": None, "wanted": None, "hint": None}
    assert json.loads(done.stdout) == {"exit_code": code, "error": parts}


def test_a_warning_raised_as_an_error_exits_with_2(tmp_path: Path) -> None:
    checkpoint = Recipe().checkpoint()
    arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--funnel", "none", "--dtype", "float16"]
    done = call(lambda: (warnings.simplefilter("error", FunnelExportWarning), cli.run(arguments)))
    assert done.returncode == 2
    assert done.stderr.startswith("error: Gemma2 is known to overflow in float16; bfloat16 is the safe choice, ")
    assert not (tmp_path / "out").exists()
