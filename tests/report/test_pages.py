"""Pages show exactly what the two JSON files contain."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from breaks import broken
from exported import Recipe
from latencies import make_latency, make_parity, make_row, put
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from funnel_export import Bundle, check, compile_bundle
from funnel_export.cli import app
from funnel_export.commands.check import compare
from funnel_export.latency.latency_report import Place, RunnerResult
from funnel_export.report import numbers
from funnel_export.report.contents import collect
from funnel_export.report.pages import read_results, render_html, render_markdown, write_reports
from funnel_export.verify.parity_report import ParityReport
from funnel_export.verify.ranges import Range, describe_ranges, magnitude

pytestmark = pytest.mark.pictures

FILES = ["report.md", "report.html", "funnel.png", "latency.png", "ratio.png", "boundaries.png", "ranges.png"]


class Page(HTMLParser):
    """The text of a page, its tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(bundle: Bundle) -> tuple[str, str]:
    """The text of the HTML page and of the rendered Markdown page, without the pictures for the latter."""
    contents = collect(bundle, *read_results(bundle, bundle.path / "reports"))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(contents))
    return Page(render_html(contents)).text, Page(rendered).text


def checked(bundle: Bundle, max_length: int, targets: list[str] | None = None) -> ParityReport:
    """The report of a check, laid into the bundle without pages."""
    parity = compare(bundle, targets=targets, max_length=max_length)
    put(bundle, parity)
    return parity


def test_check_writes_the_same_files_as_report(bundle: Bundle) -> None:
    put(bundle, make_latency(bundle))
    check(bundle, max_length=6)
    folder = bundle.path / "reports"
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert write_reports(bundle) == [folder / name for name in FILES]
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert all(before[name].startswith(b"\x89PNG") for name in FILES[2:])
    assert {path.name for path in folder.iterdir()} == {*FILES, "parity.json", "latency.json"}


def test_every_number_is_shown(bundle: Bundle) -> None:
    latency = make_latency(bundle)
    put(bundle, latency)
    parity = checked(bundle, 6)
    for page in pages(bundle):
        for row in latency.rows:
            for number in (row.dense, row.funnel):
                assert numbers.latency(number) in page
            assert numbers.ratio(row.ratio) in page
            assert row.speedup_over_eager is not None
            assert numbers.times(row.speedup_over_eager) in page
            assert f"{numbers.ms(row.dense_first_ms)} / {numbers.ms(row.funnel_first_ms)}" in page
            assert numbers.rate(row.tokens_per_second(row.funnel)) in page
        for text in ("0.713", "1.23 s", "123 MB", "2.35 GB", "a processor", "a device", "5 rounds"):
            assert text in page, text
        for target in parity.targets:
            for case in target.cases:
                assert case.case in page
                assert numbers.error(case.metrics.max_rel) in page
            for place in target.boundaries:
                assert place.name in page
                assert numbers.error(place.rms_rel) in page
        assert numbers.error(parity.limit_max_rel) in page
        assert describe_ranges(parity.ranges) in page
        for found in parity.ranges:
            assert all(text in page for text in (found.name, magnitude(found.largest), found.inside or ""))
        assert "FAILED" not in page


def test_a_table_has_one_row_per_row_of_the_report(bundle: Bundle) -> None:
    latency = make_latency(bundle)
    put(bundle, latency)
    write_reports(bundle)
    lines = (bundle.path / "reports" / "report.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| (eager|onnxruntime|openvino) \| \d+ \| \d", line)]
    assert len(rows) == len(latency.rows)


def test_before_check_and_bench(bundle: Bundle) -> None:
    assert [path.name for path in write_reports(bundle)] == ["report.md", "report.html", "funnel.png"]
    for page in pages(bundle):
        assert page.count("not run") == 2
        assert "text-generation" in page
        assert "1:3:2" in page


def test_after_bench_only(bundle: Bundle) -> None:
    """The page shows the parity check that `bench` ran."""
    put(bundle, make_latency(bundle, min_speedup=None))
    assert bundle.path / "reports" / "latency.png" in write_reports(bundle)
    for page in pages(bundle):
        assert "not run" not in page
        assert "2 of 2 targets compute what eager PyTorch computes" in page
        assert "none set" in page
    put(bundle, make_latency(bundle, rows=[], min_speedup=None))
    for page in pages(bundle):
        assert "No runtime has numbers for both models." in page
    write_reports(bundle)
    assert not (bundle.path / "reports" / "latency.png").exists()


def test_after_check_only(bundle: Bundle) -> None:
    checked(bundle, 4, ["onnxruntime"])
    for page in pages(bundle):
        assert page.count("not run") == 1
        assert "1 of 1 targets compute what eager PyTorch computes" in page
        assert page.count("left out as too long: 5, 6, 8") == 2, "in the verdict and in the parity section"


def test_a_recompiled_engine_is_outdated(bundle: Bundle) -> None:
    """Even if only an option changed and its file is the same."""
    engine = compile_bundle(bundle, "onnxruntime", name="mine", options={"intra_op_num_threads": 1})
    engines = {"mine": engine.manifest.sha256}
    put(bundle, make_latency(bundle, parity=make_parity(bundle, engines=engines)))
    for outdated in (False, True):
        if outdated:
            again = compile_bundle(bundle, "onnxruntime", name="mine", options={"intra_op_num_threads": 2})
            assert again.manifest.files[0] == engine.manifest.files[0]
        for page in pages(bundle):
            assert ("OUTDATED" in page) is outdated
            assert ("mine was recompiled or removed since: run funnel-export bench again" in page) is outdated
    put(bundle, make_latency(bundle, parity=make_parity(bundle, engines={"gone": "0" * 64})))
    for page in pages(bundle):
        assert "gone was recompiled or removed since" in page


def test_shapes_that_were_not_timed_are_named(bundle: Bundle) -> None:
    place = Place(runtime="plan", batch=2, length=4096)
    put(bundle, make_latency(bundle, not_timed=[place]))
    for page in pages(bundle):
        assert "INCOMPLETE" in page
        assert "plan at batch 2, length 4096: no optimization profile takes it" in page


def test_the_headline_counts_targets_only(bundle: Bundle) -> None:
    rows = [make_row("eager", 1, 16, 9.0, ratio=0.25), make_row("openvino", 1, 16, 5.0, ratio=0.5)]
    eager, openvino = (f"{row.ratio.speedup.value:.2f} ×" for row in rows)
    put(bundle, make_latency(bundle, rows=rows))
    for page in pages(bundle):
        assert f"{openvino} as fast" in page
        assert f"eager: {eager}" in page
    put(bundle, make_latency(bundle, rows=rows[:1]))
    for page in pages(bundle):
        assert "no target was timed" in page


def test_a_dense_bundle(tmp_path: Path) -> None:
    shared = Recipe(funnel=None).bundle()
    bundle = replace(shared, path=shutil.copytree(shared.path, tmp_path / "bundle"))
    checked(bundle, 3, ["onnxruntime"])
    for page in pages(bundle):
        assert "none (dense)" in page


def test_a_failed_parity_is_shown(bundle: Bundle, tmp_path: Path) -> None:
    def not_a_number(model: ir.Model) -> None:
        next(n for n in model.graph if str(n.name).startswith("layers.1/") and n.op_type == "Tanh").op_type = "Log"

    (tmp_path / "broken").mkdir()
    other = broken(bundle, tmp_path / "broken", not_a_number)
    report = checked(other, 3, ["onnxruntime"])
    assert not report.passed
    for page in pages(other):
        assert "onnxruntime first differs at layers.1 (error not finite" in page
        assert "FAILED" in page
        assert "not finite" in page


def test_an_overflow_in_float16_is_shown(bundle: Bundle) -> None:
    """It is information, and the bundle passes; reports of earlier versions do not have it."""
    largest = {"embed_tokens": 3.5, "layers.0": 1234.5, "layers.1": 65600.0, "layers.2": 1e12}
    found = [Range(name=name, largest=value) for name, value in largest.items()]
    found[1] = found[1].model_copy(update={"inside": "mlp.down_proj", "largest_inside": 777777.0})
    put(bundle, make_parity(bundle, ranges=found))
    for page in pages(bundle):
        text = "largest value: 1.0e+12 at layers.2; float16 (at most 65,504) overflows from layers.0 on"
        assert page.count(text) == 2, "in the verdict and in the parity section"
        assert all(value in page for value in ("1,234", "777,777", "mlp.down_proj", "1187.3 %", "15,266,243 ×"))
        assert "FAILED" not in page
    assert bundle.path / "reports" / "ranges.png" in write_reports(bundle)
    put(bundle, make_parity(bundle))
    for page in pages(bundle):
        assert "largest value" not in page.lower()
    write_reports(bundle)
    assert not (bundle.path / "reports" / "ranges.png").exists()


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e308, float("inf")])
def test_largest_values_of_any_size_are_drawn(bundle: Bundle, value: float) -> None:
    found = [Range(name=f"layers.{layer}", largest=value, inside="mlp", largest_inside=value) for layer in range(2)]
    put(bundle, make_parity(bundle, ranges=found))
    assert bundle.path / "reports" / "ranges.png" in write_reports(bundle)


def test_a_failed_gate_is_shown(bundle: Bundle) -> None:
    rows = [make_row("openvino", 1, 16, 5.0, ratio=0.99)]
    latency = make_latency(bundle, rows=rows, min_speedup=1.3, parity=make_parity(bundle, passed=False))
    put(bundle, latency)
    assert latency.gate is not None
    assert latency.gate.failures
    for page in pages(bundle):
        assert "FAILED" in page
        assert latency.gate.failures[0] in page
        assert "parity failed when latency was measured" in page


HOSTILE = "</td><script>alert(1)</script> | `code` *b* [x](javascript:alert(1)) $x$ & \x1b[31m\nnew line"


def test_hostile_names_are_escaped(bundle: Bundle) -> None:
    missing = RunnerResult(runtime=HOSTILE, model="funnel", dtype=bundle.spec.dtype, error=HOSTILE)
    rows = [make_row(HOSTILE, 1, 16, 5.0)]
    put(bundle, make_latency(bundle, rows=rows, conditions={HOSTILE: HOSTILE}, runners=[missing]))
    parity = checked(bundle, 3, ["onnxruntime"])
    target = parity.targets[0].model_copy(update={"engine": HOSTILE, "error": HOSTILE, "passed": False})
    ranges = [Range(name=f"layers.{HOSTILE}", largest=1, inside=HOSTILE, largest_inside=2)]
    put(bundle, parity.model_copy(update={"targets": [target], "passed": False, "ranges": ranges}))
    manifest = bundle.manifest.model_copy(update={"source": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    write_reports(replace(bundle, manifest=manifest))
    html, markdown = ((bundle.path / "reports" / name).read_text() for name in ("report.html", "report.md"))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    for page in map(Page, (html, rendered)):
        assert not {"script", "a"} & {tag for tag, _ in page.tags}
        assert "<script>alert(1)</script>" in page.text
        assert "| `code` *b* [x](javascript:alert(1)) $x$ &" in page.text
    assert "\x1b" not in html + markdown
    for table in re.findall(r"<table>.*?</table>", rendered, re.DOTALL):
        assert len({len(re.findall(r"<t[hd]", row)) for row in table.split("<tr>")[1:]}) == 1


def test_the_page_loads_nothing(bundle: Bundle) -> None:
    put(bundle, make_latency(bundle))
    checked(bundle, 3, ["onnxruntime"])
    write_reports(bundle)
    html = (bundle.path / "reports" / "report.html").read_text()
    assert not re.search(
        r"https?:|@import|<script|<link(?! rel=\"icon\" href=\"data:)|<img|src=", html.lower().replace("img-src", "")
    )
    identifiers = re.findall(r'\bid="([^"]*)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert {f"#{name}" for name in identifiers} >= set(re.findall(r'href="(#[^"]*)"', html))


@pytest.mark.parametrize("value", [1e308, -1.0, float("nan"), float("inf")])
def test_errors_of_any_value_are_drawn(bundle: Bundle, value: float) -> None:
    parity = checked(bundle, 3, ["onnxruntime"])
    (target,) = parity.targets
    places = [place.model_copy(update={"rms_rel": value}) for place in target.boundaries]
    put(bundle, parity.model_copy(update={"targets": [target.model_copy(update={"boundaries": places})]}))
    assert bundle.path / "reports" / "boundaries.png" in write_reports(bundle)


def test_the_command_prints_what_it_wrote(bundle: Bundle) -> None:
    done = CliRunner().invoke(app, ["report", str(bundle.path)])
    assert done.exit_code == 0
    assert [Path(line).name for line in done.stdout.splitlines()] == ["report.md", "report.html", "funnel.png"]
    assert json.loads(CliRunner().invoke(app, ["report", str(bundle.path), "--json"]).stdout) == {
        "written": done.stdout.splitlines()
    }


def test_many_failures_are_folded(bundle: Bundle) -> None:
    rows = [make_row("openvino", batch, 16, 5.0, ratio=0.99) for batch in range(1, 13)]
    put(bundle, make_latency(bundle, rows=rows, min_speedup=1.3))
    for page in pages(bundle):
        assert "7 more" in page
        assert all(f"openvino at batch {batch}, length 16" in page for batch in range(1, 13))


def test_a_target_that_could_not_run_has_no_picture(bundle: Bundle) -> None:
    parity = checked(bundle, 3, ["onnxruntime"])
    assert bundle.path / "reports" / "boundaries.png" in write_reports(bundle)
    update = {"cases": [], "boundaries": [], "passed": False, "error": "it refused the graph"}
    target = parity.targets[0].model_copy(update=update)
    put(bundle, parity.model_copy(update={"targets": [target], "passed": False}))
    for page in pages(bundle):
        assert "onnxruntime: it refused the graph" in page
        assert "Error per boundary" not in page
    write_reports(bundle)
    assert not (bundle.path / "reports" / "boundaries.png").exists()
