"""The commands of examples/README.md run here, and the C++ runners that they build compute what they should."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Recipe, forward_of_bundle
from toys import HALVES, HIDDEN, LABELS, save_files, save_toy

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", (EXAMPLES / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
RUNNERS = ("openvino_runner", "onnxruntime_runner")
NEEDS = {"POLYGRAPHY_USE_TENSORRT_RTX=1": "tensorrt_rtx", "--onnxrt": "onnxruntime", "polygraphy ": "polygraphy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: it has the examples and a bundle."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "my-bundle").symlink_to(Recipe().bundle().path)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell in this environment would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],  # noqa: S607 - README commands are for a shell
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def configured(folder: Path) -> str:
    """What CMake says of the runners, all built once."""
    missing = [program for program in ("cmake", "c++") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    said = ""
    for command in COMMANDS:
        if command.startswith(("mkdir", "ln", "cmake")):
            done = run(command, folder)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
    return said


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, configured: str, folder: Path) -> Path:
    """A runner that was built; what CMake left out is skipped in its words."""
    return built(request.param, configured, folder)


def built(name: str, configured: str, folder: Path) -> Path:
    """Path of a runner, or a skip."""
    said = next(line for line in configured.splitlines() if f"{name}: " in line)
    if "left out" in said:
        pytest.skip(said.removeprefix("-- "))
    return folder / "build" / "examples" / name


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10
    assert sum(command.startswith("build/examples/") for command in COMMANDS) == len(RUNNERS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(("mkdir", "ln", "cmake", "build/"))])
def test_command(command: str, folder: Path) -> None:
    for part, module in NEEDS.items():
        if part in command and importlib.util.find_spec(module) is None:
            pytest.skip(f"not installed: {module}")
    done = run(command, folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_runners_agree_with_this_package(runner: Path, folder: Path) -> None:
    command = next(c for c in COMMANDS if c.startswith(f"build/examples/{runner.name} "))
    done = run(f"{command} --save out.bin", folder)
    assert done.returncode == 0, done.stderr
    ids = [int(word) for word in command.split() if word.isdigit()]
    wanted = forward_of_bundle(Recipe().bundle())(torch.tensor([ids]), None).numpy()
    got = np.fromfile(folder / "out.bin", np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert f"row 0 best {wanted[0, -1].argmax()}:" in done.stdout


def test_padded_rows_of_labels_and_of_hidden_states(runner: Path, tmp_path: Path) -> None:
    """The same report as the Python example gives, to the last digit."""
    (tmp_path / "ids.txt").write_text("3\n4 5 6\n")
    for graph in (LABELS, HIDDEN):
        toy = save_toy(tmp_path / "toy", graph)
        arguments = f"{toy} --ids-file {tmp_path / 'ids.txt'} --pad 9"
        done, python = run(f"{runner} {arguments}", tmp_path), run_python(arguments, tmp_path)
        assert (done.returncode, python.returncode) == (0, 0), f"{done.stderr}\n{python.stderr}"
        assert done.stdout == python.stdout
        assert ("row 1 best 1:30.0000 0:7.5000 2:-15.0000" in done.stdout) == (graph is LABELS)


def run_python(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The Python example for ONNX Runtime."""
    return run(f"python {EXAMPLES / 'python' / 'run_onnxruntime.py'} {arguments}", folder)


def test_every_float16_is_widened_as_numpy_does(runner: Path, tmp_path: Path) -> None:
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    toy = save_toy(tmp_path / "toy", HALVES, table)
    (tmp_path / "ids.txt").write_text(" ".join(map(str, range(1 << 16))))
    done = run(f"{runner} {toy} --ids-file ids.txt --save out.bin", tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.bin", np.float32), table.astype(np.float32))


def test_files_that_are_not_the_manifests_are_refused(runner: Path, tmp_path: Path) -> None:
    """And the digest in the message is right at every boundary of SHA-256's blocks."""
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128):
        toy = save_files(tmp_path / "toy", b"x" * size)
        changed = b"y" * size if size else b"y"
        (toy / "model.onnx").write_bytes(changed)
        done = run(f"{runner} {toy} 2 5", tmp_path)
        assert done.returncode == 2
        assert f"is not the file that manifest.json names: sha256 {hashlib.sha256(changed).hexdigest()}" in done.stderr


def test_openvino_runner_reads_a_blob(configured: str, folder: Path, tmp_path: Path) -> None:
    import openvino

    runner = built("openvino_runner", configured, folder)
    toy = save_toy(tmp_path / "toy", LABELS)
    blob = openvino.Core().compile_model(toy / "model.onnx", "CPU").export_model().getvalue()
    (toy / "model.blob").write_bytes(blob)
    record = {"file": "model.blob", "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    (toy / "manifest.json").write_text(json.dumps({"files": [record]}))
    (toy / "model.onnx").unlink()
    done = run(f"{runner} {toy} 1 2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "row 0 best 1:6.0000 0:1.5000 2:-3.0000" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("", "usage"), ("my-bundle", "usage"), ("my-bundle 2 x", "'x' is not a number"), ("nowhere 2", "cannot read")],
)
def test_refused_arguments(runner: Path, folder: Path, arguments: str, message: str) -> None:
    done = run(f"{runner} {arguments}", folder)
    assert done.returncode == 2
    assert message in done.stderr


def test_tensorrt_runner_without_a_driver(configured: str, folder: Path, tmp_path: Path) -> None:
    runner = built("tensorrt_runner", configured, folder)
    toy = save_files(tmp_path / "toy", b"plan")
    (toy / "model.onnx").rename(toy / "model.plan")
    (toy / "manifest.json").write_text((toy / "manifest.json").read_text().replace("model.onnx", "model.plan"))
    done = run(f"{runner} {toy} 2 5", folder)
    assert done.returncode in (2, 3)  # 2: there is a driver, and this is no plan
    assert "error: " in done.stderr
