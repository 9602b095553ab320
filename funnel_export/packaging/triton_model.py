"""The model that Triton's Python back end runs for a bundle that generates text. Only that back end can import this."""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # Triton's own module

from funnel_export.errors import FunnelExportError
from funnel_export.packaging.triton_files import BUNDLE
from funnel_export.packaging.triton_generation import Reply, RequestReader, wants_stream
from funnel_export.runtime.batch import Batch, Token
from funnel_export.runtime.model import FunnelModelForCausalLM
from funnel_export.runtime.scheduler import Scheduler, UnavailableError
from funnel_export.runtime.tokenizer import load_tokenizer

QUEUE = 256
"""Most requests that wait for a row; more get an error."""


class Client:
    """Sends the responses of one request; a `Receiver` of the scheduler."""

    def __init__(self, sender: Any) -> None:
        self.sender = sender
        self.reply: Reply | None = None
        """None until the request has been read."""

    def take(self, token: Token) -> None:
        """See `Receiver`."""
        assert self.reply is not None
        outputs = self.reply.add(token)
        if outputs is not None:
            tensors = [triton.Tensor(name, value) for name, value in outputs.items()]
            self._send(triton.InferenceResponse(tensors), last=token.finish_reason is not None)

    def fail(self, reason: str) -> None:
        """See `Receiver`."""
        self.refuse(reason, triton.TritonError.INTERNAL)

    def is_gone(self) -> bool:
        """See `Receiver`."""
        return bool(self.sender.is_cancelled())

    def refuse(self, reason: str, code: int) -> None:
        """End the request with an error of Triton's code."""
        self._send(triton.InferenceResponse(error=triton.TritonError(reason, code)), last=True)

    def _send(self, response: Any, *, last: bool) -> None:
        self.sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


class TritonPythonModel:
    """All requests share one batch, which their texts join and leave between steps."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle of the version, as the config's parameters say."""
        config = json.loads(args["model_config"])
        options = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        engines = [options["engine"]] if "engine" in options else []
        self.inputs = [entry["name"] for entry in config["input"]]
        self.model = FunnelModelForCausalLM.from_pretrained(folder, target=options.get("target"), engines=engines)
        tokenizer = load_tokenizer(folder)
        self.reader = RequestReader(
            tokenizer=tokenizer,
            limit=self.model.stepper.limit,
            end_tokens=self.model.end_tokens,
            defaults=self.model.generation_config,
        )
        batch = Batch(
            stepper=self.model.stepper,
            max_rows=int(options["max_rows"]),
            max_bytes=int(options["max_bytes"]) if "max_bytes" in options else None,
            tokenizer=tokenizer,
        )
        self.scheduler = Scheduler(batch, QUEUE)

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the scheduler, which answers them; a request that is refused is answered here."""
        for request in requests:
            client = Client(request.get_response_sender())
            try:
                self._submit(request, client)
            except UnavailableError as err:
                client.refuse(str(err), triton.TritonError.UNAVAILABLE)
            except FunnelExportError as err:
                client.refuse(str(err), triton.TritonError.INVALID_ARG)
            except Exception as err:  # noqa: BLE001 - the other requests are not to blame
                client.refuse(f"{type(err).__name__}: {err}", triton.TritonError.INTERNAL)

    def finalize(self) -> None:
        """End the scheduler's thread, and free the graphs."""
        self.scheduler.close()
        self.model.close()

    def _submit(self, request: Any, client: Client) -> None:
        found = {name: triton.get_input_tensor_by_name(request, name) for name in self.inputs}
        inputs = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
        wanted = self.reader.read(inputs, json.loads(request.parameters()))
        client.reply = Reply(wanted, wants_stream(inputs))
        self.scheduler.submit(wanted, client)
