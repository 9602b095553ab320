"""The targets by name, and checks on engine names and bundle paths."""

import os
import sys
from importlib import import_module

from pydantic import TypeAdapter, ValidationError

from funnel_export.bundle.engine import EngineName
from funnel_export.bundle.load import Bundle
from funnel_export.errors import BundleError, SpecError
from funnel_export.spec.choices import PYTORCH
from funnel_export.targets.base import Target

_TARGETS = {
    "onnxruntime": ("funnel_export.targets.onnxruntime", "OnnxRuntimeTarget"),
    "openvino": ("funnel_export.targets.openvino", "OpenVinoTarget"),
    "tensorrt": ("funnel_export.targets.tensorrt", "TensorRtTarget"),
    "tensorrt-rtx": ("funnel_export.targets.tensorrt", "TensorRtRtxTarget"),
}


def target_names() -> list[str]:
    """The names of all targets."""
    return list(_TARGETS)


def validate_engine_name(name: str) -> None:
    """Raise `SpecError` for an invalid engine name, which is used as a folder name and in reports."""
    if name in _TARGETS or name in PYTORCH:
        raise SpecError(
            "the engine has the name of a runtime",
            got=name,
            wanted="a different name, since reports list engines and runtimes together",
            hint=f"--name {name}-engine",
        )
    try:
        TypeAdapter(EngineName).validate_python(name)
    except ValidationError as err:
        raise SpecError(
            "invalid engine name",
            got=repr(name),
            wanted="up to 128 letters, digits and ._+-, starting with a letter or digit",
        ) from err


def get_target(name: str) -> Target:
    """A target by name; raises `SpecError` for an unknown name."""
    if name not in _TARGETS:
        raise SpecError("unknown target", got=repr(name), wanted=" | ".join(_TARGETS))
    module, kind = _TARGETS[name]
    target: Target = getattr(import_module(module), kind)()
    return target


def validate_path(bundle: Bundle) -> None:
    """Raise `BundleError` if a bundle's path is not UTF-8, since runtimes cannot open it."""
    path = bundle.path.absolute()
    try:
        name = os.fsencode(path).decode()
    except UnicodeDecodeError as err:
        raise BundleError("runtimes cannot open a path that is not UTF-8", got=path, hint="rename the folder") from err
    if name != str(path):
        raise BundleError(
            "runtimes cannot open the folder, since Python's file system encoding is not UTF-8",
            got=f"{name} as {sys.getfilesystemencoding()}",
            wanted="UTF-8",
            hint="set PYTHONUTF8=1 in the environment",
        )
