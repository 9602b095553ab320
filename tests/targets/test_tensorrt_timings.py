"""The timing cache that a user names: it is read and updated, and nothing else is overwritten."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from funnel_export.errors import SpecError
from funnel_export.targets.tensorrt.build import _set_timings
from funnel_export.targets.tensorrt.options import TensorRtOptions


class Config:
    """A builder's config, which takes `times` for a timing cache and nothing else."""

    def __init__(self) -> None:
        self.combined: list[bytes] = []

    def set_flag(self, flag: str) -> None:
        assert flag == "editable"

    def create_timing_cache(self, content: bytes) -> Any:
        if content not in (b"", b"times"):
            return None
        return SimpleNamespace(content=content, combine=lambda other, **_: self.combined.append(other.content))

    def set_timing_cache(self, cache: Any, **_: Any) -> None:
        assert cache.content == b""


TRT = SimpleNamespace(BuilderFlag=SimpleNamespace(EDITABLE_TIMING_CACHE="editable"))


def set_timings(named: Path, *others: Path) -> list[bytes]:
    """Load the timings of a build whose options name a file."""
    config = Config()
    request: Any = SimpleNamespace(options=TensorRtOptions(timing_cache=named), timing_caches=[named, *others])
    _set_timings(TRT, config, request)
    return config.combined


def test_timings_are_read(tmp_path: Path) -> None:
    (tmp_path / "named").write_bytes(b"times")
    (tmp_path / "earlier").write_bytes(b"of another version")
    assert set_timings(tmp_path / "named", tmp_path / "earlier") == [b"times"]


def test_another_file_of_the_user_is_refused_before_the_build(tmp_path: Path) -> None:
    """The build ends with an update of the file."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(
        SpecError, match=r"(?s)not a timing cache of TensorRT; it was left unchanged.*model.safetensors"
    ):
        set_timings(tmp_path / "model.safetensors")
