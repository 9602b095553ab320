"""Outputs that keep their names: they are filled in place or refused before any work, and lose nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
from mounted import POINTS
from mounting import run_mounted

pytestmark = pytest.mark.slow  # `test_room.py` mounts in every run


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_mounted(Path(__file__).parents[1] / "mounted.py", tmp_path_factory.mktemp("mounts"))


def test_a_mount_gets_a_bundle_and_then_another(result: dict[str, Any]) -> None:
    """As `docker run -v volume:/out` does, twice; nothing is written into the folder above."""
    assert result["fill"]["found"] == ["old", "new"]
    assert result["fill_bind"] == ["old", "new"]


def test_the_users_file_in_a_mount_stays(result: dict[str, Any]) -> None:
    assert "holds something else" in result["fill"]["refused"]
    assert result["fill"]["kept"]


def test_a_killed_export_into_a_mount_is_mended(result: dict[str, Any]) -> None:
    killed = result["kill"]
    assert killed["killed"] == POINTS
    assert (killed["mixed"], killed["lost"], killed["left"]) == (0, 0, 0)
    assert min(killed["old"], killed["none"], killed["new"], killed["interrupted"]) > 0


def test_an_export_into_a_mount_that_fails_goes_back(result: dict[str, Any]) -> None:
    assert "Device or resource busy" in result["fail"]["error"]
    assert (result["fail"]["found"], result["fail"]["hidden"]) == ("old", [])


def test_a_bundle_of_an_images_layer_is_filled(result: dict[str, Any]) -> None:
    """An overlay takes no rename of its folders; in a user's namespace also none into them."""
    error, found = result["layer"]
    if os.geteuid() != 0 and error:
        assert "Invalid cross-device link" in error
        assert found == "old"
    else:
        assert (error, found) == ("", "new")


@pytest.mark.parametrize(
    ("command", "fault", "hint"),
    [
        ("package", "is a mount point", "another --name"),
        ("compile", "is a mount point", "another --name"),
        ("read-only", "Read-only file system", "an OUT that you may write"),
        ("demo", "Read-only file system", "/models"),
        ("export", "Read-only file system", "/models"),
    ],
)
def test_other_commands_refuse_before_any_work(command: str, fault: str, hint: str, result: dict[str, Any]) -> None:
    assert fault in result["siblings"][command]
    assert hint in result["siblings"][command].partition("try: ")[2]
