"""Many almost right files: each is accepted or refused with a FunnelExportError, and nothing is written.

Run longer with `make fuzz`, which also takes a share of the accepted configs through a whole export. That it can fail
is shown by the last test, which takes the check of the config away.
"""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from embedder import FILES, save_modules
from exported import Recipe
from fuzz.mutations import NASTY, as_json, mangled, mutated, replaced
from fuzz.watch import EXAMPLES, EXPORT_SECONDS, LONG, Tally
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from funnel_export import export, load_bundle
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.modules import read_modules
from funnel_export.errors import FunnelExportError
from funnel_export.exporter.skeleton import build_skeleton
from funnel_export.families.gemma2 import Gemma2Architecture
from funnel_export.families.rope import Rope
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec

CHECKED = Gemma2Architecture.checked_keys()
KEYS = (
    *sorted(CHECKED),
    "funnel",
    "architectures",
    "quantization_config",
    "to_dict",
    "__class__",
    "dtype",
    "return_dict",
)
WHOLE_EXPORTS = 20 if LONG else 0


@dataclass(frozen=True)
class Place:
    """A folder with a checkpoint and a bundle in it; it is also the working folder, for paths that are relative."""

    root: Path
    checkpoint: Path
    bundle: Path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    bundle = shutil.copytree(Recipe().bundle().path, tmp_path / "bundle")
    return Place(tmp_path, shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint"), bundle)


def fuzz(cases: st.SearchStrategy[bytes], try_one: Callable[[bytes], None], examples: int, **options: Any) -> None:
    """Try that many cases."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    run = settings(max_examples=examples, suppress_health_check=checks, **options)(given(cases)(try_one))
    run()


def json_cases(valid: dict[str, Any], keys: tuple[str, ...] = ()) -> st.SearchStrategy[bytes]:
    """Mostly changed values, and some mangled text."""
    changed = mutated(valid, keys)
    return st.one_of(changed, changed, changed, mangled(json.dumps(valid).encode()))


def build_model(checkpoint: Path) -> None:
    """An export up to tracing."""
    opened = Checkpoint.open(checkpoint)
    spec = opened.funnel
    if spec is not None:
        spec.validate(opened.architecture.num_hidden_layers)
    build_skeleton(opened.family, opened.config, ExportSpec(task=opened.task, dtype=opened.dtype))


def test_config(place: Place) -> None:
    tally = Tally("config.json")
    file = place.checkpoint / "config.json"
    valid = json.loads(file.read_text())
    accepted: list[bytes] = []

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        with tally.case(place.root):
            build_model(place.checkpoint)
            accepted.append(content)

    fuzz(json_cases(valid, KEYS), try_one, EXAMPLES)
    assert min(tally.accepted, tally.refused) > EXAMPLES // 20
    if not WHOLE_EXPORTS:
        return
    whole = Tally("config.json, whole export")
    different = [content for content in dict.fromkeys(accepted) if relevant(json.loads(content)) != relevant(valid)]
    for content in different[:: max(1, len(different) // WHOLE_EXPORTS)][:WHOLE_EXPORTS]:
        file.write_bytes(content)
        with whole.case(place.root, EXPORT_SECONDS):
            try:
                export(place.checkpoint, place.root / "out", funnel="1:3:2", task="text-generation")
            finally:
                shutil.rmtree(place.root / "out", ignore_errors=True)
    assert whole.outcomes.total() >= min(WHOLE_EXPORTS, len(different))


@pytest.mark.slow
def test_every_value_everywhere(place: Place) -> None:
    """What chance finds too rarely: each wrong value under each key that counts; in a long run under RoPE's too."""
    tally = Tally("config.json, every value")
    file = place.checkpoint / "config.json"
    valid = json.loads(file.read_text())
    scaled = {"rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    llama3 = scaled | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    kinds = [llama3, scaled | {"rope_type": "yarn"}] if LONG else []
    ropes = [rope | {key: value} for rope in kinds for key in Rope.model_fields for value in NASTY]
    for content in (*replaced(valid, sorted(CHECKED)), *(as_json(valid | {"rope_parameters": r}) for r in ropes)):
        file.write_bytes(content)
        with tally.case(place.root):
            build_model(place.checkpoint)
    assert tally.refused > tally.accepted > 50


def relevant(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config changes the model."""
    return {key: config[key] for key in CHECKED & config.keys()}


def test_manifest(place: Place) -> None:
    tally = Tally("manifest.json")
    file = place.bundle / "manifest.json"
    valid = json.loads(file.read_text())

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        with tally.case(place.root):
            load_bundle(place.bundle)

    fuzz(json_cases(valid), try_one, EXAMPLES)
    assert min(tally.accepted, tally.refused) > EXAMPLES // 50


def test_modules(place: Place) -> None:
    """A list of which one module is changed, or mangled text."""
    tally = Tally("modules.json")
    file = save_modules(place.checkpoint, width=40) / "modules.json"
    valid = json.loads(file.read_text())

    def with_one(number: int, module: bytes) -> bytes:
        return b"[%s]" % b", ".join(module if each is valid[number] else as_json(each) for each in valid)

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        with tally.case(place.root):
            assert read_modules(place.checkpoint, Task.FEATURE_EXTRACTION).keys() <= set(FILES)

    changed = st.integers(0, len(valid) - 1).flatmap(
        lambda number: mutated(valid[number], ("path", "type")).map(lambda module: with_one(number, module))
    )
    fuzz(st.one_of(changed, changed, mangled(file.read_bytes())), try_one, EXAMPLES)
    assert min(tally.accepted, tally.refused) > EXAMPLES // 20


def test_header(place: Place) -> None:
    tally = Tally("safetensors header")
    file = place.checkpoint / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]

    def try_one(head: bytes) -> None:
        file.write_bytes(head + data)
        with tally.case(place.root):
            opened = Checkpoint.open(place.checkpoint)
            size = len(head) + len(data)
            assert all(0 <= t.offset <= t.offset + t.nbytes <= size for t in opened.tensors.values())
            build_model(place.checkpoint)

    sized = mutated(json.loads(header)).map(lambda new: struct.pack("<Q", len(new)) + new)
    fuzz(st.one_of(sized, sized, mangled(content[: 8 + length])), try_one, EXAMPLES)
    assert min(tally.accepted, tally.refused) > EXAMPLES // 50


def test_without_the_check_of_the_config_it_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally("config.json, unchecked")
    file = place.checkpoint / "config.json"
    valid = json.loads(file.read_text())
    monkeypatch.setattr(Gemma2Architecture, "of", lambda config: Gemma2Architecture.model_construct(**config))

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        with tally.case(place.root):
            build_model(place.checkpoint)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever torch raises
        fuzz(json_cases(valid, KEYS), try_one, 1000, phases=[Phase.generate], report_multiple_bugs=False)
    assert not isinstance(caught.value, FunnelExportError | AssertionError)
