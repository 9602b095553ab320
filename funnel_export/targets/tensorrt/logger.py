"""A TensorRT logger that keeps messages for error reports."""

from typing import Any


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors and warnings in lists, and drops other messages."""

    class Kept(trt.ILogger):  # type: ignore[misc]  # a base that only the module has
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING and message not in self.warnings:
                self.warnings.append(message)

    return Kept()
