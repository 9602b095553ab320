"""The build process: reads a request from stdin and writes answers to stdout, one line of JSON each.

Builds run in a separate process for four reasons: the library ignores Ctrl-C for minutes; its gigabytes are freed when
the process ends; if memory runs out, the system kills only this process; and Polygraphy supports only one of the two
modules per process.
"""

import os
import sys
import threading
import warnings
from typing import TextIO

from funnel_export.errors import FunnelExportError
from funnel_export.system.worker import take_stdout
from funnel_export.targets.tensorrt.flavour import TENSORRT, TENSORRT_RTX
from funnel_export.targets.tensorrt.request import Answer, BuildRequest, Built, Refusal, Step


def main() -> None:
    """Read a request, build the plan and report the result."""
    answers = take_stdout()
    request = BuildRequest.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    flavour = TENSORRT_RTX if request.target == TENSORRT_RTX.target else TENSORRT
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(flavour is TENSORRT_RTX))  # Polygraphy reads it at import
    warnings.simplefilter("ignore")  # Polygraphy calls functions that the modules deprecate
    from funnel_export.targets.tensorrt.build import build

    try:
        facts = build(flavour, request, lambda step, done: _say(answers, Step(step=step, done=done)))
    except FunnelExportError as err:
        _say(answers, Refusal(kind=type(err).__name__, what=err.what, **err.details))
    except OSError as err:
        _say(
            answers,
            Refusal(kind="BundleError", what="the plan could not be written, or a timing cache read", got=str(err)),
        )
    else:
        _say(answers, Built(facts=facts))


def _say(answers: TextIO, message: Step | Refusal | Built) -> None:
    answers.write(Answer(message=message).model_dump_json() + "\n")
    answers.flush()


def _end_with_parent() -> None:
    """Exit when stdin closes, which also happens when the parent dies."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
