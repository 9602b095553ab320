"""Building in a process of its own, and what became of it."""

import signal
import subprocess
import sys
import tempfile
from typing import Any

from funnel_export import errors
from funnel_export.errors import TargetRefusedError
from funnel_export.progress import Progress
from funnel_export.targets.tensorrt.request import Answer, BuildRequest, Built, Refusal, Step

WORKER = [sys.executable, "-P", "-m", "funnel_export.targets.tensorrt.worker"]
"""With -P, since a folder in which somebody compiles, a bundle perhaps, must not bring modules of its own."""
LAST_WORDS = 1500
"""Characters of what a process that died had written."""


def build_in_process(request: BuildRequest, progress: Progress) -> dict[str, Any]:
    """Build a plan in another process, which ends with this call whatever happens.

    Raises:
        FunnelExportError: what the build raised, or `TargetRefusedError` if its process died.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        worker = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            _send(worker.stdin, request)
            for line in worker.stdout:
                message = Answer.model_validate_json(line).message
                if isinstance(message, Step):
                    progress(message.step, message.done)
                elif isinstance(message, Built):
                    return message.facts
                else:
                    raise _as_error(message)
            worker.wait()
            said.seek(0)
            raise _death(request.target, worker.returncode, said.read())
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
            _close(worker.stdin)


def _send(stream: Any, request: BuildRequest) -> None:
    try:
        stream.write(request.model_dump_json() + "\n")
        stream.flush()
    except BrokenPipeError:  # it died before it read; its last words say why
        return


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return


def _as_error(refusal: Refusal) -> errors.FunnelExportError:
    kind: type[errors.FunnelExportError] = getattr(errors, refusal.kind)
    return kind(refusal.what, got=refusal.got, wanted=refusal.wanted, hint=refusal.hint)


def _death(target: str, code: int, said: str) -> TargetRefusedError:
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    hint = "a machine with more memory, or a smaller --profile" if code == -signal.SIGKILL else None
    return TargetRefusedError(
        f"the process that built with {target} died", got=f"{how}\n{said[-LAST_WORDS:]}".rstrip(), hint=hint
    )
