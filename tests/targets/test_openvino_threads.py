"""OpenVINO on one thread: float32 runs, bfloat16 is refused, since it would end the whole process."""

import shutil
from pathlib import Path

import pytest
from exported import Recipe

from funnel_export import Bundle, SpecError, compile_bundle, load_bundle
from funnel_export.targets import openvino
from funnel_export.targets.registry import get_target

ONE = {"INFERENCE_NUM_THREADS": 1}


def own(folder: Path, dtype: str) -> Bundle:
    return load_bundle(shutil.copytree(Recipe(dtype=dtype).bundle().path, folder / dtype))


def has_bfloat16() -> bool:
    return "native bfloat16" in get_target("openvino").availability().detail


needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="OpenVINO runs bfloat16 graphs in float32 here")


def test_float32_runs_on_one_thread(tmp_path: Path) -> None:
    assert compile_bundle(own(tmp_path, "float32"), "openvino", options=ONE).file.exists()


@needs_bfloat16
def test_bfloat16_on_one_thread_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = own(tmp_path, "bfloat16")
    with pytest.raises(SpecError, match=r"(?s)crashes on bfloat16.*INFERENCE_NUM_THREADS=1.*HINT=f32"):
        compile_bundle(bundle, "openvino", options=ONE)
    assert compile_bundle(bundle, "openvino", options=ONE | {"INFERENCE_PRECISION_HINT": "f32"}).file.exists()
    monkeypatch.setattr(openvino.os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(SpecError, match="may use one core"):
        get_target("openvino").load(bundle.model)
    assert compile_bundle(bundle, "openvino", options={"INFERENCE_NUM_THREADS": 2}).file.exists()
