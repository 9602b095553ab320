"""The comparison refuses bundles that were broken on purpose, in every runtime."""

import shutil
from pathlib import Path

import pytest
from cases import Case
from runtimes import RUNTIMES
from twins import TWINS, unchanged


@pytest.fixture
def copied(bundles: Path, tmp_path: Path) -> Case:
    """A case whose bundle may be changed."""
    sound = Case.read(bundles, "text-generation-funnel")
    return Case(Path(shutil.copytree(sound.folder, tmp_path / "bundle")), sound.reference)


def compare(case: Case, runtime: str) -> None:
    case.check("left", RUNTIMES[runtime](case.folder, case.task, case.inputs("left")))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_passes_when_nothing_was_changed(copied: Case, runtime: str) -> None:
    unchanged(copied.folder)
    compare(copied, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("twin", TWINS)
def test_refuses_a_broken_bundle(copied: Case, twin: str, runtime: str) -> None:
    TWINS[twin](copied.folder)
    with pytest.raises(AssertionError, match="differs from eager PyTorch"):
        compare(copied, runtime)
