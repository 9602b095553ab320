"""A real Triton server generates text with a package, for several clients at once: `make triton`."""

import contextlib
import http.client
import json
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Recipe
from tokenizers_of_words import speaking
from transformers import AutoTokenizer
from triton_server import Server, back_ends, packages, serving

from funnel_export import FunnelModelForCausalLM, FunnelSpec, Quantization, compile_bundle, load_bundle
from funnel_export.commands.package import package
from funnel_export.spec.choices import Task
from funnel_export.spec.triton import TritonOptions

pytestmark = pytest.mark.triton

ENDLESS = 100_000
"""Tokens of a text that takes longer than the server may take for any answer."""
RECIPE = Recipe(
    task=Task.TEXT_GENERATION_WITH_PAST,
    funnel=FunnelSpec.parse("1:3:3"),
    overrides=(("max_position_embeddings", ENDLESS),),
)
OPTIONS = {
    "graphs": TritonOptions(max_batch_size=2, target="onnxruntime"),
    "engines": TritonOptions(engine="openvino-cpu", instances=2),
}
QUANTIZED = "int8"
"""A model with quantized weights."""
PROMPT = {"text_input": "w5 w6 w7", "max_tokens": 20}
WILD: dict[str, Any] = {"temperature": 2.0, "seed": 7}
"""Sampling from a flat distribution, so that a text does not repeat one word."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tokenizer and engines."""
    packages()
    folder = speaking(RECIPE.bundle().path, tmp_path_factory.mktemp("bundle") / "bundle")
    opened = load_bundle(folder)
    for role in opened.graphs:
        compile_bundle(opened, "openvino", graph=role)
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages()
    recipe = replace(RECIPE, quantization=Quantization(bits=8))
    return speaking(recipe.bundle().path, tmp_path_factory.mktemp("quantized") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path, quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("server")
    for name, options in OPTIONS.items():
        package(bundle, folder / "models", name=name, options=options)
    package(quantized, folder / "models", name=QUANTIZED, options=OPTIONS["graphs"])
    with serving(packages(), folder / "models", back_ends(packages(), folder / "backends"), folder / "log") as running:
        assert running.states() == dict.fromkeys([*OPTIONS, QUANTIZED], "READY"), running.log.read_text()
        yield running


@pytest.fixture(scope="module")
def model(bundle: Path) -> FunnelModelForCausalLM:
    return FunnelModelForCausalLM.from_pretrained(bundle, target="onnxruntime")


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> Any:
    return AutoTokenizer.from_pretrained(bundle, local_files_only=True)


def ask(server: Server, name: str = "graphs", **body: Any) -> dict[str, Any]:
    """The one response."""
    status, answer = server.ask_for_status(f"models/{name}/generate", PROMPT | body)
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def parts(server: Server, name: str = "graphs", **body: Any) -> list[dict[str, Any]]:
    return list(server.stream(f"models/{name}/generate_stream", PROMPT | {"stream": True} | body))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 30, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_a_text_is_hugging_faces(
    name: str, options: dict[str, Any], server: Server, model: FunnelModelForCausalLM, tokenizer: Any
) -> None:
    found = ask(server, name, **options, seed=3)
    prompt = tokenizer(PROMPT["text_input"], return_tensors="pt")
    torch.manual_seed(3)
    wanted = model.generate(**prompt, max_new_tokens=20, do_sample=bool(options), **({"top_k": None} | options))
    new = wanted[0, prompt.input_ids.shape[1] :].tolist()
    assert found["output_ids"] == new
    assert found["text_output"] == tokenizer.decode(new, skip_special_tokens=True)
    assert (found["finish_reason"], found["num_input_tokens"], found["num_output_tokens"]) == ("length", 4, 20)


def test_quantized_weights_write_the_same_text(server: Server, quantized: Path, tokenizer: Any) -> None:
    own = FunnelModelForCausalLM.from_pretrained(quantized, target="onnxruntime")
    prompt = tokenizer(PROMPT["text_input"], return_tensors="pt")
    wanted = own.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert ask(server, QUANTIZED)["output_ids"] == wanted.tolist()


def joined(found: list[dict[str, Any]]) -> str:
    return "".join(part["text_output"] for part in found)


def test_a_stream_has_the_text_in_parts(server: Server) -> None:
    whole, found = ask(server, **WILD), parts(server, **WILD)
    assert len(found) > 15
    assert joined(found) == whole["text_output"]
    assert [part["finish_reason"] for part in found] == [""] * (len(found) - 1) + ["length"]
    assert sum(part["num_output_tokens"] for part in found) == 20
    assert {part["num_input_tokens"] for part in found} == {4}
    assert np.hstack([part["output_ids"] for part in found]).tolist() == whole["output_ids"]
    (unasked,) = parts(server, stream=False, **WILD)
    assert unasked == whole, "in one part unless asked for"


def test_token_ids_are_a_prompt_too(server: Server) -> None:
    body = {"input_ids": [1, 5, 6, 7], "max_tokens": 20} | WILD
    status, found = server.ask_for_status("models/graphs/generate", body)
    assert (status, found["text_output"]) == (200, ask(server, **WILD)["text_output"])


def test_options_may_be_among_the_parameters(server: Server) -> None:
    """As the generate extension has them."""
    body = {"text_input": PROMPT["text_input"], "parameters": WILD | {"max_tokens": 20}}
    assert server.ask("models/graphs/generate", body) == ask(server, **WILD)


def test_clients_at_once_get_what_each_gets_alone(server: Server) -> None:
    """Five clients for two rows, so that some wait for a row."""
    asked = [WILD | {"text_input": f"w{number} w5", "seed": number, "max_tokens": 40 + number} for number in range(5)]
    alone = [ask(server, **options) for options in asked]
    assert len({each["text_output"] for each in alone}) == 5
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda options: ask(server, **options), asked)) == alone
        streams = list(pool.map(lambda options: parts(server, **options), asked))
    assert [joined(stream) for stream in streams] == [each["text_output"] for each in alone]


CLIENT = """
import json, sys, urllib.request
body = json.dumps({"text_input": "w9 w8", "max_tokens": int(sys.argv[2]), "stream": True, "temperature": 2.0})
with urllib.request.urlopen(sys.argv[1], data=body.encode()) as answer:
    for line in answer:
        print(line, flush=True)
"""


def kill_a_client(server: Server) -> None:
    """Kill a client in the middle of its text."""
    address = f"{server.address}/v2/models/graphs/generate_stream"
    command = [sys.executable, "-c", CLIENT, address, str(ENDLESS - 10)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert b"data" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_clients_that_are_killed_free_their_rows(server: Server) -> None:
    """There are two rows: the third text would not end in time if the first two went on."""
    alone = ask(server, max_tokens=300, **WILD)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(ask, server, max_tokens=300, **WILD)
        kill_a_client(server)
        assert beside.result() == alone
    kill_a_client(server)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, server, max_tokens=300, **WILD) for _ in range(2)]
        assert [each.result() for each in both] == [alone, alone]


def test_a_stop_string_across_tokens(server: Server) -> None:
    text = ask(server, **WILD)["text_output"]
    words = text.split()
    stop = f"{words[9][1:]} {words[10]} "
    options = WILD | {"stop": ["nowhere", stop]}
    found = ask(server, **options)
    assert (found["text_output"], found["finish_reason"]) == (text[: text.index(stop)], "stop")
    stream = parts(server, **options)
    assert (joined(stream), stream[-1]["finish_reason"]) == (found["text_output"], "stop")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the request does not have exactly one prompt"),
        ({"text_input": "w5", "input_ids": [5]}, "the request does not have exactly one prompt"),
        ({"input_ids": []}, "the prompt is empty"),
        ({"input_ids": [61]}, "outside the model's vocabulary"),
        ({"text_input": "w5", "max_tokens": ENDLESS}, "longer than the model takes"),
        ({"text_input": "w5", "max_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"text_input": "w5", "temperature": -1}, "invalid temperature"),
        ({"text_input": "w5", "top_p": 2}, "invalid top_p"),
        ({"text_input": "w5", "stop": ""}, "a stop string is empty"),
        ({"text_input": "w5", "max_token": 5}, "unknown options.*'max_token'"),
        ({"text_input": "w5", "parameters": {"n": 2}}, "unknown options.*'n'"),
    ],
    ids=str,
)
def test_a_bad_request(server: Server, body: dict[str, Any], message: str) -> None:
    for path, options in (("generate", {}), ("generate_stream", {"stream": True})):
        status, found = server.ask_for_status(f"models/graphs/{path}", body | options)
        assert status == 400, found
        assert re.search(message, found["error"], re.DOTALL)
    assert ask(server)["finish_reason"] == "length"


def send(server: Server, **body: Any) -> http.client.HTTPConnection:
    """Send a request for a stream, and do not wait for the answer."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    content = json.dumps(PROMPT | {"stream": True} | body)
    connection.request("POST", "/v2/models/graphs/generate_stream", content)
    return connection


def test_more_requests_than_wait(server: Server) -> None:
    """Two texts take the rows, 256 wait, and others are told to come again; then all clients go away."""
    alone = ask(server, **WILD)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            running = stack.enter_context(contextlib.closing(send(server, max_tokens=ENDLESS - 10, temperature=2.0)))
            assert running.getresponse().readline().startswith(b"data")
        waiting = [stack.enter_context(contextlib.closing(send(server))) for _ in range(257)]
        answered = select.select([each.sock for each in waiting], [], [], 60)[0]
        (refused,) = (each for each in waiting if each.sock in answered)
        assert b"too many requests are waiting" in refused.getresponse().read()
        status, answer = server.ask_for_status("models/graphs/generate", PROMPT)
        assert status == 400, "of every error in Triton 2.51"
        assert "too many requests are waiting" in answer["error"]
    wait(lambda: server.ask_for_status("models/graphs/generate", PROMPT)[0] == 200)  # it sees that they are gone
    assert ask(server, **WILD) == alone


def test_a_model_is_unloaded_and_loaded(server: Server) -> None:
    alone = ask(server, "engines")
    assert server.ask_for_status("repository/models/engines/unload", {})[0] == 200
    wait(lambda: "READY" not in server.states()["engines"])
    assert ask(server)["text_output"] == alone["text_output"], "the other model goes on"
    assert server.ask_for_status("repository/models/engines/load", {})[0] == 200
    assert ask(server, "engines") == alone


def test_a_package_that_was_served_can_be_replaced(server: Server, bundle: Path) -> None:
    """The server's Python has left its bytecode in it."""
    repository = server.log.parent / "models"
    assert list(repository.glob("graphs/1/__pycache__/*.pyc"))
    package(bundle, repository, name="graphs", options=OPTIONS["graphs"])
    assert ask(server)["finish_reason"] == "length"


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
