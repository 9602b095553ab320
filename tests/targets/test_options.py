"""Options of engines: what a manifest may say of them."""

from pathlib import Path
from typing import get_args

import pytest

from funnel_export.targets.options import Options, options_of_engine, parse_options
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


def test_every_kind_of_file_option_is_left_out() -> None:
    class Named(Options):
        own: Path = Path("own")
        other: Path | None = None
        count: int = 0

    found = options_of_engine(Named, {"own": "/etc/hostname", "other": "/etc/hostname", "count": 3})
    assert found.recorded() == {"count": 3}
