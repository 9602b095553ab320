"""TensorRT-RTX's cache of compiled kernels, saved beside the plan with a record of what it belongs to."""

import hashlib
import warnings
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from funnel_export.bundle.engine import CACHES, Engine
from funnel_export.bundle.record import Digest
from funnel_export.errors import FunnelExportWarning, printable
from funnel_export.system.atomic import write_bytes, write_text
from funnel_export.system.files import LARGEST_JSON, read_bytes
from funnel_export.targets.tensorrt.gpu import find_gpu

CACHE, RECORD = CACHES
LARGEST_CACHE = 1 << 30
"""Limit of a cache in bytes; NVIDIA advises to keep caches below a tenth of it."""


class _Record(BaseModel):
    """The plan, version, GPU and driver that a cache belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Digest
    plan_sha256: Digest
    version: str
    gpu: str
    driver: str


def load_cache(engine: Engine) -> bytes | None:
    """The cache beside a plan; None with a warning if it was changed, or belongs to another plan, version or GPU."""
    if not (engine.path / CACHE).exists():
        return None
    try:
        content = read_bytes(engine.path / CACHE, LARGEST_CACHE)
        found = _Record.model_validate_json(read_bytes(engine.path / RECORD, LARGEST_JSON))
    except (OSError, ValidationError) as err:
        _warn(f"cannot be read: {err}")
        return None
    if found == _record(engine, content):
        return content
    _warn("was changed, or made for another plan, version, GPU or driver")
    return None


def save_cache(engine: Engine, content: bytes) -> None:
    """Save a cache beside a plan; do nothing if the bundle cannot be written."""
    with suppress(OSError):
        write_bytes(engine.path / CACHE, content)
        write_text(engine.path / RECORD, _record(engine, content).model_dump_json() + "\n")


def _record(engine: Engine, content: bytes) -> _Record:
    gpu = find_gpu()
    return _Record(
        sha256=hashlib.sha256(content).hexdigest(),
        plan_sha256=engine.manifest.files[0].sha256,
        version=engine.manifest.version,
        gpu=f"{gpu.name} {gpu.compute_capability}",
        driver=gpu.driver,
    )


def _warn(why: str) -> None:
    warnings.warn(f"the runtime cache is not used: it {printable(why)}", FunnelExportWarning, stacklevel=3)
