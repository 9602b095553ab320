"""What is written has the user's permissions, and without a swap of names the earlier folder is not lost."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from funnel_export.errors import BundleError
from funnel_export.system import atomic
from funnel_export.system.claims import EARLIER


@pytest.fixture
def umask() -> Iterator[None]:
    """Group may read, others may not."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "file", "text")
    with atomic.replace_folder(tmp_path / "folder", lambda _: False) as fresh:
        assert fresh.parent == tmp_path
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with content, on a system that cannot swap two names."""
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    return folder


def test_without_a_swap_the_new_folder_takes_its_place(earlier: Path) -> None:
    with atomic.replace_folder(earlier, lambda _: True) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in earlier.iterdir()] == ["new"]
    assert [path.name for path in earlier.parent.iterdir()] == ["folder"]


def test_without_a_swap_a_rename_that_fails_brings_the_earlier_folder_back(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if target == earlier and not path.name.endswith(EARLIER):
            raise OSError("the disk is full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(BundleError, match="the disk is full"), atomic.replace_folder(earlier, lambda _: True):
        pass
    assert [path.name for path in earlier.iterdir()] == ["old"]
    assert [path.name for path in earlier.parent.iterdir()] == ["folder"]
