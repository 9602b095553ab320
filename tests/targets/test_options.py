"""Options of engines: what a manifest may say of them, and the limit of threads."""

import os
from pathlib import Path
from typing import get_args

import openvino
import pytest

from funnel_export.errors import SpecError
from funnel_export.targets.onnxruntime_options import OnnxRuntimeOptions
from funnel_export.targets.openvino import COUNTS, _validate_properties
from funnel_export.targets.options import MOST_THREADS, Options, options_of_engine, parse_options
from funnel_export.targets.registry import get_target, target_names


@pytest.mark.parametrize("target", target_names())
def test_no_file_comes_from_a_manifest(target: str) -> None:
    kind = get_target(target).options
    files = [
        name for name, field in kind.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))
    ]
    assert files == (["timing_cache"] if target.startswith("tensorrt") else [])
    recorded = dict.fromkeys(files, "/etc/hostname")
    assert parse_options(kind, recorded).recorded() == recorded
    assert options_of_engine(kind, recorded).recorded() == {}


def at_the_limit(target: str, count: int | str) -> None:
    """Check a number of threads as builds and loads do."""
    if target == "onnxruntime":
        parse_options(OnnxRuntimeOptions, {"intra_op_num_threads": count, "inter_op_num_threads": count})
    else:
        _validate_properties(openvino.Core(), dict.fromkeys(COUNTS, count))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_threads_have_a_limit(target: str) -> None:
    assert max(64, 4 * (os.cpu_count() or 1)) == MOST_THREADS
    for count in (0, 1, MOST_THREADS, str(MOST_THREADS)):
        at_the_limit(target, count)
    for more in (MOST_THREADS + 1, str(MOST_THREADS + 1), 10**30, max(1024, MOST_THREADS + 1)):
        with pytest.raises(SpecError, match=r"too many threads|less than or equal to"):
            at_the_limit(target, more)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["+{}", " {}", "0000000000{}", "{}.0", "{}e0", "{} threads", 1e9])
def test_no_spelling_gets_past_the_limit(name: str, value: str | float) -> None:
    value = value.format(MOST_THREADS + 1) if isinstance(value, str) else value
    with pytest.raises(SpecError, match="too many threads or streams"):
        _validate_properties(openvino.Core(), {name: value})


def test_openvino_may_decide() -> None:
    _validate_properties(openvino.Core(), {"NUM_STREAMS": "AUTO"})
    _validate_properties(openvino.Core(), {"NUM_STREAMS": "-1"})


def test_every_kind_of_file_option_is_left_out() -> None:
    class Named(Options):
        own: Path = Path("own")
        other: Path | None = None
        count: int = 0

    found = options_of_engine(Named, {"own": "/etc/hostname", "other": "/etc/hostname", "count": 3})
    assert found.recorded() == {"count": 3}
