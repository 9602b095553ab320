"""Runs a build in a separate process."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from funnel_export import errors
from funnel_export.errors import TargetRefusedError
from funnel_export.progress import Progress
from funnel_export.system.worker import SILENCE, Worker, WorkerSilentError
from funnel_export.targets.tensorrt.request import Answer, BuildRequest, Built, Refusal, Step

PROGRAM = ("-m", "funnel_export.targets.tensorrt.worker")


def build_in_process(request: BuildRequest, progress: Progress, timeout: float = SILENCE) -> dict[str, Any]:
    """Build a plan in a separate process, which always ends before this call does.

    Args:
        request: the plan to build.
        progress: called with every step that the build reports.
        timeout: seconds without a step, or before the process reads the request, after which the build is stopped.

    Returns:
        Facts about the build, see `build`.

    Raises:
        FunnelExportError: the error of the build, or `TargetRefusedError` if its process died or timed out.
    """
    with Worker(PROGRAM) as worker:
        with _limited(request.target, timeout):
            worker.send(request.model_dump_json(), timeout)
        while (line := _next_line(worker, request.target, timeout)) is not None:
            try:
                message = Answer.model_validate_json(line).message
            except ValidationError as err:
                what = f"the build process of {request.target} sent an invalid message"
                raise TargetRefusedError(what, got=repr(line[:200])) from err
            if isinstance(message, Step):
                progress(message.step, message.done)
            elif isinstance(message, Built):
                return message.facts
            else:
                raise _as_error(message)
        hint = "use a machine with more memory, or a smaller --profile" if worker.was_killed else None
        raise TargetRefusedError(f"the build process of {request.target} died", got=worker.death(), hint=hint)


def _next_line(worker: Worker, target: str, timeout: float) -> str | None:
    with _limited(target, timeout):
        return worker.receive(timeout)


@contextlib.contextmanager
def _limited(target: str, timeout: float) -> Iterator[None]:
    """Raise `TargetRefusedError` if the block waits too long for the process."""
    try:
        yield
    except WorkerSilentError as err:
        raise TargetRefusedError(
            f"the build process of {target} timed out",
            got=err,
            wanted=f"a step within {timeout:g} s",
            hint="use a longer --timeout, or a smaller --profile",
        ) from err


def _as_error(refusal: Refusal) -> errors.FunnelExportError:
    kind: type[errors.FunnelExportError] = getattr(errors, refusal.kind)
    return kind(refusal.what, got=refusal.got, wanted=refusal.wanted, hint=refusal.hint)
