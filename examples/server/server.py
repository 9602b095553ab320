"""An OpenAI-shaped server of one bundle: all clients share one batch, which their texts join and leave.

python examples/server/server.py my-bundle --rows 8

It has no authentication and no encryption, and listens on loopback unless told otherwise.
"""

import argparse
import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import fastapi
import uvicorn
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from funnel_export import Batch, FunnelExportError, FunnelModelForCausalLM, Request, Sampling
from funnel_export.runtime.batch import Token
from funnel_export.runtime.scheduler import Scheduler, UnavailableError
from funnel_export.runtime.tokenizer import load_tokenizer

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Options of OpenAI that change the answer and are not supported: refused unless they are null or have these values."""


class ApiError(Exception):
    """A request that gets an error of OpenAI's shape."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self, *_: Any) -> JSONResponse:
        """As a response that is not streamed."""
        return JSONResponse(self.body, self.status)


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class Options(BaseModel):
    """What both kinds of requests may ask for; other fields are kept, so that `check_supported` sees them."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Refuse options that would change the answer; ignore names that OpenAI does not know."""
        for name, value in (self.model_extra or {}).items():
            neutral = [(type(each) is bool, each) for each in NEUTRAL.get(name, ())]  # False is not 0
            if neutral and value is not None and (type(value) is bool, value) not in neutral:
                raise ApiError(f"{name} is not supported, except {NEUTRAL[name][0]!r}", param=name)


class CompletionOptions(Options):
    """The body of `/v1/completions`."""

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]


class Part(BaseModel):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    role: str
    content: str | list[Part]


class ChatOptions(Options):
    """The body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None


class Stream:
    """The tokens of a text, on their way from the scheduler's thread to the event loop."""

    def __init__(self) -> None:
        self.gone = False
        """Whether nobody wants them any more."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Token | ApiError] = asyncio.Queue()

    def take(self, token: Token) -> None:
        """See `Receiver`."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, token)

    def fail(self, reason: str) -> None:
        """See `Receiver`."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, ApiError(reason, status=500))

    def is_gone(self) -> bool:
        """See `Receiver`."""
        return self.gone

    async def tokens(self) -> AsyncIterator[Token]:
        """All tokens; raises `ApiError` if the text ends early."""
        while True:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if event.finish_reason:
                return


class Server:
    """The routes, over a model, its tokenizer and its batch."""

    def __init__(self, model: FunnelModelForCausalLM, tokenizer: Any, batch: Batch, *, name: str, queue: int) -> None:
        self.tokenizer, self.batch, self.name = tokenizer, batch, name
        self.limit = model.stepper.limit
        self.defaults = model.generation_config
        self.stop_tokens = model.end_tokens
        self.created = int(time.time())
        self.scheduler = Scheduler(batch, queue)

    def app(self) -> fastapi.FastAPI:
        """The application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.scheduler.close)

        app = fastapi.FastAPI(title=self.name, lifespan=lifespan)
        app.add_exception_handler(ApiError, lambda _, err: err.response())
        app.add_exception_handler(RequestValidationError, lambda _, err: invalid(err).response())
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.post("/v1/completions", response_model=None)(self.completions)
        app.post("/v1/chat/completions", response_model=None)(self.chat)
        return app

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [await self.model(self.name)]}

    async def model(self, name: str) -> dict[str, Any]:
        """A model by its name."""
        self._check_name(name)
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "funnel_export"}

    async def completions(self, options: CompletionOptions, http: fastapi.Request) -> Response:
        """Continue a prompt: a string, or token ids."""
        prompt: Any = options.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise ApiError("one prompt in a request, please", param="prompt")
            (prompt,) = prompt
        tokens = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        longest = 16 if options.max_tokens is None else options.max_tokens  # OpenAI's default
        request = self._request(options, tokens, longest, "prompt")

        def choice(piece: str, reason: str | None) -> dict[str, Any]:
            return {"index": 0, "text": piece, "logprobs": None, "finish_reason": reason}

        return await self._answer(
            http, options, request, ("cmpl", "text_completion", "text_completion"), choice, choice
        )

    async def chat(self, options: ChatOptions, http: fastapi.Request) -> Response:
        """Answer a chat, by the tokenizer's template."""
        if not self.tokenizer.chat_template:
            raise ApiError("the model has no chat template; use /v1/completions", param="messages")
        messages = [
            {"role": each.role, "content": each.content if isinstance(each.content, str) else join(each.content)}
            for each in options.messages
        ]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as err:  # a template raises what it likes, such as "roles must alternate"
            raise ApiError(f"the chat template refuses the messages: {err}", param="messages") from err
        tokens = self.tokenizer(text, add_special_tokens=False).input_ids
        given = options.max_tokens if options.max_completion_tokens is None else options.max_completion_tokens
        longest = max(1, self.limit - len(tokens)) if given is None else given
        request = self._request(options, tokens, longest, "messages")

        def whole(text: str, reason: str | None) -> dict[str, Any]:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}

        def part(piece: str, reason: str | None) -> dict[str, Any]:
            delta = {"role": "assistant", "content": piece}
            return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

        kinds = ("chatcmpl", "chat.completion", "chat.completion.chunk")
        return await self._answer(http, options, request, kinds, whole, part)

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(f"there is no model {name!r}, only {self.name!r}", status=404, code="model_not_found")

    def _request(self, options: Options, tokens: list[int], longest: int, param: str) -> Request:
        """A request of the batch. What is not given is as `generation_config.json` says, or as OpenAI's default."""
        self._check_name(options.model)
        options.check_supported()
        if len(tokens) + longest > self.limit:
            raise ApiError(
                f"this model's maximum context length is {self.limit} tokens; you asked for {len(tokens)} in the "
                f"prompt and {longest} new ones",
                param=param,
                code="context_length_exceeded",
            )
        defaults = self.defaults if self.defaults.do_sample else None

        def given(name: str, otherwise: Any) -> Any:
            value = getattr(options, name)
            value = getattr(defaults, name, None) if value is None else value
            return otherwise if value is None else value

        stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
        try:
            sampling = Sampling(
                temperature=given("temperature", 1.0),
                top_k=given("top_k", 0),
                top_p=given("top_p", 1.0),
                seed=options.seed,
            )
            request = Request(
                prompt=tuple(tokens),
                max_new_tokens=longest,
                sampling=sampling,
                stop_tokens=self.stop_tokens,
                stop_strings=tuple(stop),
            )
            self.batch.check(request)
        except FunnelExportError as err:
            raise ApiError(str(err), param=param) from err
        return request

    def _submit(self, request: Request) -> Stream:
        stream = Stream()
        try:
            self.scheduler.submit(request, stream)
        except UnavailableError as err:
            raise ApiError(err.what, status=503, code="overloaded") from err
        return stream

    async def _answer(
        self,
        http: fastapi.Request,
        options: Options,
        request: Request,
        kinds: tuple[str, str, str],
        whole: Callable[[str, str | None], dict[str, Any]],
        part: Callable[[str, str | None], dict[str, Any]],
    ) -> Response:
        """A response, streamed or not; `kinds` are the prefix of its id, and the objects' names whole and in parts."""
        head = {"id": f"{kinds[0]}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        stream = self._submit(request)
        if options.stream:
            usage = options.stream_options is not None and options.stream_options.include_usage
            return Events(stream, self._events(stream, request, head | {"object": kinds[2]}, part, usage))
        try:
            done = await unless_gone(http, collect(stream))
        finally:
            stream.gone = True
        if done is None:
            return Response(status_code=499)  # nobody reads it
        text = "".join(token.text for token in done)
        choices = [whole(text, done[-1].finish_reason)]
        return JSONResponse(head | {"object": kinds[1], "choices": choices, "usage": usage_of(request, len(done))})

    async def _events(
        self,
        stream: Stream,
        request: Request,
        head: dict[str, Any],
        part: Callable[[str, str | None], dict[str, Any]],
        usage: bool,
    ) -> AsyncIterator[str]:
        """Server-sent events, one for each piece of text."""
        count = 0
        try:
            async for token in stream.tokens():
                count += 1
                if token.text or token.finish_reason:
                    yield event(head | {"choices": [part(token.text, token.finish_reason)]})
        except ApiError as err:  # the status has been sent already
            yield event(err.body)
            return
        if usage:
            yield event(head | {"choices": [], "usage": usage_of(request, count)})
        yield "data: [DONE]\n\n"


class Events(StreamingResponse):
    """A stream of events, which frees its text's row as soon as the client goes away."""

    def __init__(self, stream: Stream, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.stream = stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send all events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.gone = True


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def usage_of(request: Request, count: int) -> dict[str, int]:
    """Numbers of tokens."""
    prompt = len(request.prompt)
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def join(parts: list[Part]) -> str:
    """The text of a message's parts."""
    return "".join(part.text for part in parts)


def invalid(err: RequestValidationError) -> ApiError:
    """A body that is not what the route takes."""
    found = [(".".join(map(str, each["loc"][1:])), each["msg"]) for each in err.errors()]
    return ApiError("; ".join(f"{name}: {message}" for name, message in found), param=found[0][0] or None)


async def collect(stream: Stream) -> list[Token]:
    """All tokens of a text."""
    return [token async for token in stream.tokens()]


async def unless_gone(http: fastapi.Request, work: Awaitable[list[Token]]) -> list[Token] | None:
    """The result of some work, or None, with the work cancelled, if the client goes away before."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Serve a bundle."""
    parser = argparse.ArgumentParser(description="An OpenAI-shaped server of one bundle.")
    parser.add_argument("bundle", help="a bundle of the task text-generation-with-past, with a tokenizer")
    parser.add_argument("--target", help="a target of funnel-export; by default the first that runs the bundle here")
    parser.add_argument("--engine", action="append", default=[], help="name of an engine of the bundle")
    parser.add_argument("--name", default="funnel", help="the model's name for clients (default: funnel)")
    parser.add_argument("--rows", type=int, default=8, help="most texts at the same time (default: 8)")
    parser.add_argument("--bytes", type=int, help="most bytes of the caches")
    parser.add_argument("--queue", type=int, default=64, help="most requests that wait for a row (default: 64)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    server = load(args.bundle, args.target, args.engine, args.name, rows=args.rows, bytes_=args.bytes, queue=args.queue)
    uvicorn.run(server.app(), host=args.host, port=args.port)


def load(
    bundle: str,
    target: str | None = None,
    engines: list[str] | None = None,
    name: str = "funnel",
    *,
    rows: int = 8,
    bytes_: int | None = None,
    queue: int = 64,
) -> Server:
    """A server of a bundle."""
    model = FunnelModelForCausalLM.from_pretrained(bundle, target=target, engines=engines or [])
    tokenizer = load_tokenizer(model.bundle.path)
    batch = Batch(stepper=model.stepper, max_rows=rows, max_bytes=bytes_, tokenizer=tokenizer)
    return Server(model, tokenizer, batch, name=name, queue=queue)


if __name__ == "__main__":
    main()
