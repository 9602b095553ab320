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

LAST = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
QUEUE = 256
"""Most requests that wait for a row; more get an error."""


class Client:
    """Sends the responses of one request; a `Receiver` of the scheduler."""

    def __init__(self, sender: Any, reply: Reply) -> None:
        self.sender, self.reply = sender, reply

    def take(self, token: Token) -> None:
        """See `Receiver`."""
        outputs = self.reply.add(token)
        if outputs is not None:
            tensors = [triton.Tensor(name, value) for name, value in outputs.items()]
            self.sender.send(triton.InferenceResponse(tensors), flags=LAST if token.finish_reason else 0)

    def fail(self, reason: str) -> None:
        """See `Receiver`."""
        _refuse(self.sender, reason, triton.TritonError.INTERNAL)

    def is_gone(self) -> bool:
        """See `Receiver`."""
        return bool(self.sender.is_cancelled())


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
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except UnavailableError as err:
                _refuse(sender, str(err), triton.TritonError.UNAVAILABLE)
            except FunnelExportError as err:
                _refuse(sender, str(err), triton.TritonError.INVALID_ARG)
            except Exception as err:  # noqa: BLE001 - the other requests are not to blame
                _refuse(sender, f"{type(err).__name__}: {err}", triton.TritonError.INTERNAL)

    def finalize(self) -> None:
        """End the scheduler's thread, and free the graphs."""
        self.scheduler.close()
        self.model.close()

    def _submit(self, request: Any, sender: Any) -> None:
        found = {name: triton.get_input_tensor_by_name(request, name) for name in self.inputs}
        inputs = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
        wanted = self.reader.read(inputs, json.loads(request.parameters()))
        self.scheduler.submit(wanted, Client(sender, Reply(wanted, wants_stream(inputs))))


def _refuse(sender: Any, reason: str, code: int) -> None:
    """End a request with an error, whose code is one of Triton's."""
    sender.send(triton.InferenceResponse(error=triton.TritonError(reason, code)), flags=LAST)
