"""A real Triton server for tests: the one in the wheel of pytriton, which has the Python back end only."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MODEL = """
import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        graph = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [entry["name"] for entry in self.config["input"]]
        inputs = {name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        outputs = [entry["name"] for entry in self.config["output"]]
        values = self.session.run(outputs, inputs)
        return pb.InferenceResponse([pb.Tensor(*pair) for pair in zip(outputs, values)])
"""
"""Stands in for the back end `onnxruntime`, which is not in the wheel: the same runtime behind the same config."""


def packages() -> Path:
    """Where pytriton is installed; skips the test if it is not."""
    place = os.environ.get("FUNNEL_EXPORT_TRITON")
    if place is None:
        pytest.skip("no Triton server; run `make triton`")
    (found,) = Path(place).resolve().glob("lib/python3*/site-packages")
    return found


def back_ends(packages: Path, folder: Path) -> Path:
    """A folder of back ends: Python's own, and `onnxruntime` written in Python. Links would be refused."""
    server = packages / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends" / "python", folder / "python")
    version = packages.parent.name.removeprefix("python")
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime" / "model.py").write_text(MODEL)
    return folder


class Server:
    """A running server, asked over HTTP."""

    def __init__(self, address: str, log: Path) -> None:
        self.address, self.log = address, log

    def ask(self, path: str, content: object = None) -> Any:
        """The answer of the server, of errors too; content makes it a POST."""
        return self.ask_for_status(path, content)[1]

    def ask_for_status(self, path: str, content: object = None) -> tuple[int, Any]:
        """The status and the answer."""
        try:
            with self._open(path, content) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as err:
            return err.code, json.loads(err.read().removeprefix(b"data: ") or b"{}")

    def stream(self, path: str, content: object) -> Iterator[Any]:
        """The server-sent events of an answer."""
        with self._open(path, content) as answer:
            for line in answer:
                if line.strip():
                    yield json.loads(line.removeprefix(b"data: "))

    def _open(self, path: str, content: object) -> Any:
        data = None if content is None else json.dumps(content).encode()
        return urllib.request.urlopen(f"{self.address}/v2/{path}", data=data, timeout=60)  # noqa: S310 - loopback

    def states(self) -> dict[str, str]:
        """READY for each model that is, and why not for the others; "" where the server has refused the config."""
        return {
            model["name"]: model.get("reason", "") or model.get("state", "")
            for model in self.ask("repository/index", {})
        }


@contextmanager
def serving(packages: Path, repository: Path, backends: Path, log: Path) -> Iterator[Server]:
    """Run the server over a repository, on the loopback only, as strict about configs as it can be.

    All models are loaded; clients may unload them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model-repository": repository,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "exit-on-error": "false",
        "model-control-mode": "explicit",
        "load-model": "*",
    }
    program = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    command = [program, "--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
    programs = packages.parents[2] / "bin"
    environment = {  # the back end's Python is the first in PATH, with the libpython that belongs to it
        "LD_LIBRARY_PATH": f"{_libraries(programs / 'python')}:{packages / 'nvidia_pytriton.libs'}",
        "PATH": f"{programs}:/usr/bin:/bin",
    }
    with log.open("w") as stream, subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as process:
        try:
            server = Server(f"http://127.0.0.1:{port}", log)
            _wait(server, process)
            yield server
        finally:
            process.terminate()


def _libraries(python: Path) -> str:
    """The folder of an interpreter's own shared library."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _wait(server: Server, process: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    """Wait until the server answers, which it does once it has tried to load every model."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("health/live")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the server does not answer:\n{server.log.read_text()}")
