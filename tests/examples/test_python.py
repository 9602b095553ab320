"""The Python examples, run as programs: without this package, and compared with its own session."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Recipe, forward_of_bundle
from torch import Tensor
from toys import HIDDEN, LABELS, save_toy

from funnel_export import Profile

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
FAKES = Path(__file__).parent / "fakes"
ROWS = [[2, 5, 6], [2, 7, 8, 9, 10, 11, 12]]
PROFILES = [
    Profile.parse(f"{name}:batch=1:1:{batch},sequence=1:{best}:{longest}").model_dump()
    for name, batch, best, longest in [("chat", 1, 4, 8), ("long", 4, 16, 32), ("best", 4, 8, 32)]
]


def run(script: str, *arguments: object, fakes: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an example."""
    paths = {"PYTHONPATH": str(FAKES)} if fakes else {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        cwd=EXAMPLES,
        env={**environment, **paths, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of token ids."""
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(" ".join(map(str, row)) for row in ROWS) + "\n")
    return file


def padded() -> tuple[Tensor, Tensor]:
    """ROWS as a batch."""
    ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for number, row in enumerate(ROWS):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return ids, mask


def expected(recipe: Recipe) -> np.ndarray:
    """What this package's own session computes."""
    return forward_of_bundle(recipe.bundle())(*padded()).float().numpy()


def test_onnxruntime(rows: Path, tmp_path: Path) -> None:
    recipe = Recipe()
    done = run("run_onnxruntime.py", recipe.bundle().path, "--ids-file", rows, "--save", tmp_path / "out.npy")
    assert done.returncode == 0, done.stderr
    wanted = expected(recipe)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    assert f"{list(wanted.shape)} min" in done.stdout
    best = wanted[1, 6].argmax()
    assert f"row 1 best {best}:{wanted[1, 6, best]:.4f} " in done.stdout


def test_outputs_of_other_tasks(tmp_path: Path) -> None:
    """Labels have no axis of tokens; hidden states are not ranked."""
    labels = run("run_onnxruntime.py", save_toy(tmp_path / "labels", LABELS), 1, 2)
    assert labels.stdout == "logits [1, 3] min -3 max 6 mean 1.5\nrow 0 best 1:6.0000 0:1.5000 2:-3.0000\n"
    hidden = run("run_onnxruntime.py", save_toy(tmp_path / "hidden", HIDDEN), 1, 2)
    assert hidden.stdout == "last_hidden_state [1, 2, 2] min -4 max 1 mean -1.125\n"


def test_examples_import_nothing_of_ours() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert "funnel_export" not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "no token ids; give some"), (("--ids-file", "/nowhere"), "No such file"), (("2", "--pad"), "usage")],
)
def test_refused_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = run("run_onnxruntime.py", Recipe().bundle().path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_changed_graph_is_refused(tmp_path: Path) -> None:
    bundle = Recipe().bundle().path
    (tmp_path / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"\0")
    done = run("run_onnxruntime.py", tmp_path, 2, 5)
    assert done.returncode == 2
    assert "is not the file that manifest.json names" in done.stderr


def test_a_provider_that_is_not_here() -> None:
    done = run("run_onnxruntime.py", Recipe().bundle().path, 2, 5, "--provider", "NoneExecutionProvider")
    assert done.returncode == 3
    assert "CPUExecutionProvider" in done.stderr


def engine(folder: Path, plan: bytes) -> Path:
    """A folder as `compile` leaves it."""
    folder.mkdir()
    (folder / "model.plan").write_bytes(plan)
    record = {"file": "model.plan", "size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 2, "profiles": PROFILES, "files": [record]}))
    return folder


def test_tensorrt_without_a_driver(tmp_path: Path) -> None:
    """With the real runtime: whatever the plan is, it is not read without a device."""
    pytest.importorskip("tensorrt_rtx")
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if cuda.cudaGetDeviceCount()[0] == cuda.cudaError_t.cudaSuccess:
        pytest.skip("there is a driver here")
    done = run("run_tensorrt.py", engine(tmp_path / "e", b"plan"), 2, 5, "--runtime", "tensorrt_rtx")
    assert done.returncode == 3
    assert "no NVIDIA driver or GPU here: cudaError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_plan_is_refused_before_any_runtime_is_imported(tmp_path: Path) -> None:
    folder = engine(tmp_path / "e", b"plan")
    (folder / "model.plan").write_bytes(b"Plan")
    done = run("run_tensorrt.py", folder, 2, 5)
    assert done.returncode == 2
    assert "is not the file that manifest.json names" in done.stderr


def test_no_profile_takes_the_shape(tmp_path: Path) -> None:
    done = run("run_tensorrt.py", engine(tmp_path / "e", b"plan"), *range(33))
    assert done.returncode == 2
    assert "no optimization profile takes batch 1, sequence 33" in done.stderr


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("dtype", ["FLOAT", "HALF", "BF16"])
def test_tensorrt_with_a_fake_runtime(runtime: str, dtype: str, rows: Path, tmp_path: Path) -> None:
    """The order of calls, buffers, profile and dtypes; what it cannot show is that the real runtime agrees."""
    recipe = Recipe()
    folder = engine(tmp_path / "e", str(recipe.bundle().model.path).encode())
    arguments = folder, "--ids-file", rows, "--save", tmp_path / "out.npy", "--runtime", runtime
    done = run("run_tensorrt.py", *arguments, fakes=True, FAKE_DTYPE=dtype)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "fake: profile 2\n"
    wanted = expected(recipe)
    if dtype == "BF16":
        wanted = (wanted.view(np.uint32) >> 16 << 16).view(np.float32)
    if dtype == "HALF":
        wanted = wanted.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    assert (folder / "runtime.cache").exists() == (runtime == "tensorrt_rtx")


def test_the_runtime_cache_is_used_again(tmp_path: Path) -> None:
    folder = engine(tmp_path / "e", str(Recipe().bundle().model.path).encode())
    for content, said in [(b"", ""), (b"kernels", ""), (b"of another GPU", "compiling anew")]:
        if content:
            (folder / "runtime.cache").write_bytes(content)
        done = run("run_tensorrt.py", folder, 2, 5, "--runtime", "tensorrt_rtx", fakes=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert (f"cache {content.decode()}" in done.stderr) == bool(content)
        assert (folder / "runtime.cache").read_bytes() == b"kernels"


def test_host_code_runs_only_when_allowed(tmp_path: Path) -> None:
    folder = engine(tmp_path / "e", b"host code:" + str(Recipe().bundle().model.path).encode())
    refused = run("run_tensorrt.py", folder, 2, 5, fakes=True)
    assert refused.returncode == 2
    assert "needs --allow-host-code" in refused.stderr
    assert run("run_tensorrt.py", folder, 2, 5, "--allow-host-code", fakes=True).returncode == 0
