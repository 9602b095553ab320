"""The OpenAI-shaped server of examples/server, asked by OpenAI's own client over loopback."""

import importlib.util
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from exported import Recipe
from tokenizers_of_words import speaking

from funnel_export import FunnelSpec
from funnel_export.runtime.invariants import faults_of_batch
from funnel_export.spec.choices import Task

FILE = Path(__file__).parents[2] / "examples" / "server" / "server.py"
MODEL = "funnel"
WILD: dict[str, Any] = {"model": MODEL, "temperature": 2.0, "seed": 7}
"""Sampling from a flat distribution, so that a text does not repeat one word."""
LONG = WILD | {"prompt": "w9 w8", "max_tokens": 400}


@dataclass
class Served:
    """A server in a thread."""

    server: Any
    url: str
    client: openai.OpenAI

    @property
    def scheduler(self) -> Any:
        return self.server.scheduler

    @property
    def steps(self) -> int:
        return self.scheduler.batch.held.steps

    def settles(self) -> None:
        """Wait until all rows are free, and look at what is left. Texts end by themselves too, so look at `steps`."""
        wait(lambda: not (self.scheduler.running or self.scheduler.waiting or self.scheduler.batch.keys))
        assert faults_of_batch(self.scheduler.batch) == []
        assert not self.scheduler.batch.held.nbytes


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("server_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tokenizer."""
    recipe = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3"))
    return speaking(recipe.bundle().path, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def served(example: Any, chatty: Path) -> Iterator[Served]:
    made = example.load(str(chatty), "onnxruntime", rows=3, queue=8)
    server = uvicorn.Server(uvicorn.Config(made.app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield Served(made, url, client)
    server.should_exit = True
    thread.join()


def text_of(served: Served, **options: Any) -> str:
    return served.client.completions.create(**WILD | {"max_tokens": 30} | options).choices[0].text


def test_models(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == [MODEL]
    assert served.client.models.retrieve(MODEL).owned_by == "funnel_export"


def test_a_completion_and_its_stream(served: Served) -> None:
    options = WILD | {"prompt": "w5 w6 w7", "max_tokens": 20}
    whole = served.client.completions.create(**options)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (4, 20, 24)
    parts = list(served.client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert len(parts) > 15
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 2) + ["length"]
    assert (parts[-1].choices, parts[-1].usage) == ([], whole.usage)
    assert text_of(served, prompt=[1, 5, 6, 7], max_tokens=20) == whole.choices[0].text
    short = served.client.completions.create(**WILD | {"prompt": ["w5"]})
    assert short.usage is not None
    assert short.usage.completion_tokens == 16, "OpenAI's default"


def test_a_chat_and_its_stream(served: Served) -> None:
    options = WILD | {"messages": [{"role": "user", "content": [{"type": "text", "text": "w5 w6"}]}]}
    whole = served.client.chat.completions.create(**options, max_completion_tokens=20)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 4, "<s> w5 w6 w9"
    assert whole.choices[0].message.role == "assistant"
    parts = list(served.client.chat.completions.create(**options, max_tokens=20, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert whole.choices[0].message.content == text_of(served, prompt=[1, 5, 6, 9], max_tokens=20)


def test_clients_at_once_get_what_each_gets_alone(served: Served) -> None:
    """Five clients for three rows, so that some wait for a row."""
    asked = [{"prompt": f"w{number} w5", "seed": number, "max_tokens": 40 + number} for number in range(5, 10)]
    alone = [text_of(served, **options) for options in asked]
    before = served.steps
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda options: text_of(served, **options), asked))
    assert together == alone
    assert served.steps - before < sum(40 + number for number in range(5, 10)) * 0.8
    served.settles()


def test_a_client_that_goes_away_frees_its_row(served: Served) -> None:
    alone = text_of(served, prompt="w5", max_tokens=100)
    before = served.steps
    with ThreadPoolExecutor(1) as pool:
        stream = served.client.completions.create(**LONG, stream=True)
        other = pool.submit(text_of, served, prompt="w5", max_tokens=100)
        for _ in range(3):
            next(stream)
        stream.close()
        assert other.result() == alone
    served.settles()
    assert served.steps - before < 300, "not all 400 tokens"


def test_a_row_that_is_not_freed_is_seen(example: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example.Stream, "is_gone", lambda self: False)
    with pytest.raises(AssertionError, match="not all 400 tokens"):
        test_a_client_that_goes_away_frees_its_row(served)


def test_a_client_that_does_not_wait_for_its_answer(served: Served) -> None:
    """Not streamed: the client's own timeout closes the connection."""
    with pytest.raises(openai.APITimeoutError):
        served.client.with_options(timeout=0.05).completions.create(**LONG | {"max_tokens": 500})
    steps = served.steps
    served.settles()
    assert served.steps - steps < 100


CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
for part in client.completions.create(model="funnel", prompt="w9 w8", max_tokens=500, stream=True):
    print(part.choices[0].text, flush=True)
"""


def test_a_client_that_is_killed(served: Served) -> None:
    before = served.steps
    process = subprocess.Popen([sys.executable, "-c", CLIENT, served.url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    served.settles()
    assert served.steps - before < 400, "not all 500 tokens"


def test_a_stop_string_across_tokens(served: Served) -> None:
    text = text_of(served, prompt="w5 w6")
    words = text.split()
    stop = f"{words[9][1:]} {words[10]} "
    options = WILD | {"prompt": "w5 w6", "max_tokens": 30, "stop": ["nowhere", stop]}
    cut = served.client.completions.create(**options)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    parts = list(served.client.completions.create(**options, stream=True))
    assert "".join(part.choices[0].text for part in parts) == cut.choices[0].text
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_stop_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    words = text_of(served, prompt="w5 w6").split()
    ends = words[9]
    monkeypatch.setattr(served.server, "stop_tokens", frozenset({int(ends[1:])}))
    cut = served.client.completions.create(**WILD | {"prompt": "w5 w6", "max_tokens": 30})
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (" ".join(words[: words.index(ends)]), "stop")


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"prompt": "w5 " * 511}, "prompt", "maximum context length is 512 tokens"),
        ({"prompt": "w5", "max_tokens": 511}, "prompt", "maximum context length is 512 tokens"),
        ({"prompt": []}, "prompt", "the prompt is empty"),
        ({"prompt": [5, 61]}, "prompt", "outside the model's vocabulary"),
        ({"prompt": [5, 2**70]}, "prompt", "outside the model's vocabulary"),
        ({"prompt": [-1]}, "prompt", "outside the model's vocabulary"),
        ({"prompt": ["w5", "w6"]}, "prompt", "one prompt"),
        ({"max_tokens": 0}, "prompt", "max_new_tokens must be at least 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stop": ""}, "prompt", "stop string is empty"),
        ({"seed": 2**64}, "prompt", "invalid seed"),
        ({"n": 2}, "n", "n is not supported, except 1"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    ],
    ids=str,
)
def test_a_bad_request(served: Served, options: dict[str, Any], param: str, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            served.client.completions.create(**WILD | {"prompt": "w5"} | options, stream=stream)
        assert caught.value.type == "invalid_request_error"
        assert (caught.value.param or "").startswith(param)
    served.settles()


def test_errors_of_other_kinds(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        text_of(served, prompt="w5", model="other")
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError, match="text"):
        served.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [image]}])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        served.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "w5"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert text_of(served, prompt="w5", n=1, logit_bias={}, extra_body={"colour": "red"}), "unknown names are ignored"


def test_more_requests_than_wait(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all rows taken, one request waits, and the next is told to come again."""
    alone = text_of(served, prompt="w5")
    with ThreadPoolExecutor(1) as pool:
        streams = [served.client.completions.create(**LONG | {"max_tokens": 500}, stream=True) for _ in range(3)]
        for stream in streams:
            next(stream)
        monkeypatch.setattr(served.scheduler, "queue", 1)
        waits = pool.submit(text_of, served, prompt="w5")
        wait(lambda: served.scheduler.waiting == 1)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                served.client.completions.create(**LONG, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        for each in streams:
            each.close()
        assert waits.result() == alone
    served.settles()


def test_a_failing_step_is_an_error_and_not_the_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = text_of(served, prompt="w5")

    class Failing:
        def run(self, _: Any) -> Any:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setitem(served.scheduler.batch.stepper.sessions, "exit", Failing())
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            text_of(served, prompt="w5")
        with pytest.raises(openai.APIError, match="out of memory"):
            list(served.client.completions.create(**LONG, stream=True))
    served.settles()
    assert text_of(served, prompt="w5") == alone


def test_two_hundred_cancelled_requests(served: Served) -> None:
    """No rows, no jobs and no memory stay behind."""
    alone = text_of(served, prompt="w5")
    client = served.client

    def cancel(count: int) -> None:
        for _ in range(count):
            stream = client.completions.create(**LONG, stream=True)
            next(stream)
            stream.close()
        served.settles()

    cancel(20)
    before, steps = resident(), served.steps
    cancel(200)
    assert served.steps - steps < 200 * 100, "not all 400 tokens of each"
    assert resident() - before < 20e6
    assert text_of(served, prompt="w5") == alone


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096.0


def test_a_prompt_beyond_the_bytes_of_the_batch(example: Any, chatty: Path) -> None:
    """Refused when it is asked for, and so never waits for room that there will not be."""
    made = example.load(str(chatty), "onnxruntime", rows=2, bytes_=200_000)
    options = example.CompletionOptions(model=MODEL, prompt="w5", max_tokens=400)
    with pytest.raises(example.ApiError, match="longer than the batch takes"):
        made._request(options, [5], 400, "prompt")


def test_the_command_line(example: Any, chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the program but uvicorn's loop, in which it would stay."""
    ran: dict[str, Any] = {}
    monkeypatch.setattr(example.uvicorn, "run", lambda app, **options: ran.update(options, app=app))
    monkeypatch.setattr(sys, "argv", ["server.py", str(chatty), "--target", "onnxruntime", "--name", "mine"])
    example.main()
    assert (ran["host"], ran["port"], ran["app"].title) == ("127.0.0.1", 8000, "mine")
