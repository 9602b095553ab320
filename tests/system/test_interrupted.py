"""Writers that are interrupted, and folders that somebody removes meanwhile."""

import shutil
from pathlib import Path

import pytest

from funnel_export.errors import BundleError
from funnel_export.system.atomic import replace_folder, write_files


def test_files_of_an_interrupted_writer_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C while the pages of a report are written."""
    files = {tmp_path / name: name.encode() for name in ("report.md", "report.html", "funnel.png")}
    write_files(dict.fromkeys(files, b"earlier"))
    write = Path.write_bytes

    def interrupt(path: Path, content: bytes) -> int:
        if content == b"funnel.png":
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_files(files)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(files, b"earlier")


def test_a_folder_that_is_removed_while_it_is_written_is_said_to_be(tmp_path: Path) -> None:
    """As by an export to a bundle for which somebody compiles."""
    engine = tmp_path / "bundle" / "engines" / "cpu"

    def write() -> None:
        with replace_folder(engine, lambda _: False) as fresh:
            shutil.rmtree(tmp_path / "bundle")
            (fresh / "plan").write_text("1")

    with pytest.raises(BundleError, match=r"(?s)another process removed or replaced the folder.*no other command"):
        write()
    assert list(tmp_path.iterdir()) == []
