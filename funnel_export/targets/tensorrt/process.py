"""Building in a process of its own, and what became of it."""

from typing import Any

from funnel_export import errors
from funnel_export.errors import TargetRefusedError
from funnel_export.progress import Progress
from funnel_export.system.worker import Worker
from funnel_export.targets.tensorrt.request import Answer, BuildRequest, Built, Refusal, Step

PROGRAM = ("-m", "funnel_export.targets.tensorrt.worker")


def build_in_process(request: BuildRequest, progress: Progress) -> dict[str, Any]:
    """Build a plan in another process, which ends with this call whatever happens.

    Raises:
        FunnelExportError: what the build raised, or `TargetRefusedError` if its process died.
    """
    with Worker(PROGRAM) as worker:
        worker.send(request.model_dump_json())
        while (line := worker.receive()) is not None:
            message = Answer.model_validate_json(line).message
            if isinstance(message, Step):
                progress(message.step, message.done)
            elif isinstance(message, Built):
                return message.facts
            else:
                raise _as_error(message)
        hint = "a machine with more memory, or a smaller --profile" if worker.was_killed else None
        raise TargetRefusedError(f"the process that built with {request.target} died", got=worker.death(), hint=hint)


def _as_error(refusal: Refusal) -> errors.FunnelExportError:
    kind: type[errors.FunnelExportError] = getattr(errors, refusal.kind)
    return kind(refusal.what, got=refusal.got, wanted=refusal.wanted, hint=refusal.hint)
