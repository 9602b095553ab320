"""Reports that are damaged, belong to another bundle, are links, or cannot be drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import ALL_LAYERS
from latencies import make_latency, make_parity, put

from funnel_export import Bundle, check
from funnel_export.errors import BundleError, FunnelExportWarning
from funnel_export.report.pages import write_reports

pytestmark = pytest.mark.pictures


@pytest.mark.parametrize("name", ["parity", "latency"])
def test_a_report_of_another_bundle_is_refused(bundle: Bundle, name: str) -> None:
    other = ALL_LAYERS.bundle()
    put(bundle, make_parity(other) if name == "parity" else make_latency(other))
    with pytest.raises(BundleError, match=rf"(?s){name}\.json was made from another bundle.*or remove the file"):
        write_reports(bundle)


def nonsense_range(largest: object) -> Callable[[Bundle], str]:
    def make(bundle: Bundle) -> str:
        report = make_parity(bundle).model_dump(mode="json")
        return json.dumps(report | {"ranges": [{"name": "layers.0", "largest": largest}]})

    return make


def nonsense(change: Callable[[dict[str, Any]], None]) -> Callable[[Bundle], str]:
    def make(bundle: Bundle) -> str:
        report = make_latency(bundle).model_dump(mode="json")
        change(report)
        return json.dumps(report)

    return make


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parity.json", lambda bundle: "{}"),
        ("parity.json", nonsense_range(-1.0)),
        ("parity.json", nonsense_range("NaN")),
        ("latency.json", lambda bundle: "not JSON"),
        ("latency.json", nonsense(lambda report: report["rows"][0]["dense"].update(median_ms=-1.0))),
        ("latency.json", nonsense(lambda report: report["rows"][0]["ratio"].update(low=0.0))),
        ("latency.json", nonsense(lambda report: report.update(rows=report["rows"][:1] * 2000))),
        ("latency.json", nonsense(lambda report: report["rows"][0].update(length=10**400))),
        ("latency.json", nonsense(lambda report: report["rows"][0]["dense"].update(low_ms=1e-320))),
        ("latency.json", nonsense(lambda report: report["runners"][0]["memory"].update(host_bytes=10**400))),
    ],
)
def test_a_damaged_file_is_refused(bundle: Bundle, name: str, content: Callable[[Bundle], str]) -> None:
    (bundle.path / "reports").mkdir()
    (bundle.path / "reports" / name).write_text(content(bundle))
    with pytest.raises(BundleError, match="again, or remove the file"):
        write_reports(bundle)
    assert [path.name for path in (bundle.path / "reports").iterdir()] == [name]


def test_check_works_beside_a_damaged_latency_report(bundle: Bundle) -> None:
    """Pages with the results of an earlier check are removed."""
    assert check(bundle, targets=["onnxruntime"], max_length=3).passed
    (bundle.path / "reports" / "latency.json").write_text("[]")
    with pytest.warns(UserWarning, match=r"parity\.json is written, but no page of it: latency\.json is not a report"):
        assert check(bundle, targets=["onnxruntime"], max_length=3).passed
    assert {path.name for path in (bundle.path / "reports").iterdir()} == {"parity.json", "latency.json"}


def test_a_report_that_cannot_be_drawn_does_not_lose_the_result(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OverflowError("no such number")

    monkeypatch.setattr("funnel_export.report.contents.draw_all", refuse)
    with pytest.warns(
        FunnelExportWarning, match=r"(?s)parity\.json is written, but no page of it: .*OverflowError: no such number"
    ):
        assert check(bundle, targets=["onnxruntime"], max_length=3).passed


def test_links_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle.path / "reports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="`reports` is a symbolic link"):
        write_reports(bundle)
    (bundle.path / "reports").unlink()
    (bundle.path / "reports").mkdir()
    (bundle.path / "reports" / "latency.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BundleError, match="a symbolic link"):
        write_reports(bundle)
    (bundle.path / "reports" / "latency.json").unlink()
    (tmp_path / "mine.md").write_text("mine")
    (bundle.path / "reports" / "report.md").symlink_to(tmp_path / "mine.md")
    write_reports(bundle)
    assert (tmp_path / "mine.md").read_text() == "mine"
