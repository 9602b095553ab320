"""The reviewed graphs: a fresh export says what `graphs/` says, and only a person changes that."""

import functools
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from tiers import SOAK, slow
from typer.testing import CliRunner

from funnel_export.cli import app
from funnel_export.commands import graphs as contracts
from funnel_export.commands.graphs import CHANGES, CONTRACTS, TOOLS, Contract, accept_graphs, check_graphs, contract_of
from funnel_export.errors import BundleError, SpecError
from funnel_export.exporter import ops
from funnel_export.exporter.ops import describe_ops
from funnel_export.families.gemma2 import GEMMA2
from funnel_export.spec.choices import Dtype

ROOT = Path(__file__).parents[2]
GRAPHS = ROOT / "graphs"


def pinned() -> dict[str, str]:
    """Versions in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def skip_with_other_tools() -> None:
    """The same computation is written as other nodes by other versions, so only the tested ones are compared."""
    others = {tool: version(tool).split("+")[0] for tool in TOOLS}
    others = {tool: found for tool, found in others.items() if found != pinned()[tool]}
    if others:
        pytest.skip(f"graphs/ was accepted with the versions of constraints.txt, and here are {others}")


OTHERS = ("text-generation-s2-bfloat16", "text-generation-with-past-s4-bfloat16")
"""Contracts in 16 bits that `make check` compares; of the families beside Gemma2 it is the first."""
LONGEST = "text-generation-with-past-s2-float32"
"""Its three graphs take longest, and `OTHERS` has such graphs too."""
QUICK = (
    *("text-generation-dense-float32", "text-generation-s2-float32", "text-generation-s2-bfloat16"),
    "text-generation-with-past-dense-float32",
)
"""Those that `make test` compares too."""


def compared() -> list[Contract]:
    """The contracts of Gemma2 in float32 but `LONGEST`, and `OTHERS`, since each takes a trace; all in `make soak`.

    Of the strides, 4 is among `OTHERS` only.
    """
    plain = [case for case in CONTRACTS if case.family is GEMMA2 and case.dtype is Dtype.FLOAT32]
    plain = [case for case in plain if case.funnel is None or case.funnel.stride == 2]
    plain = [case for case in plain if case.name != LONGEST]
    others = [case for case in CONTRACTS if case.name.removeprefix(case.family.contract_prefix) in OTHERS]
    return [*CONTRACTS] if SOAK else [*plain, *others]


@pytest.mark.traces
@pytest.mark.parametrize(
    "case",
    [case if case.name in QUICK else slow(case) for case in compared()],
    ids=lambda case: case.name,
)
def test_a_fresh_export_is_as_accepted(case: Contract) -> None:
    skip_with_other_tools()
    assert contract_of(case) == (GRAPHS / "contracts" / f"{case.name}.txt").read_text()


@functools.cache
def fresh_ops() -> dict[str, str]:
    """The texts of the operations, made once."""
    return describe_ops()


def test_the_operations_are_as_accepted() -> None:
    skip_with_other_tools()
    stored = {file.stem: file.read_text() for file in (GRAPHS / "ops").iterdir()}
    assert fresh_ops() == stored


def test_every_contract_has_a_case() -> None:
    assert {file.stem for file in (GRAPHS / "contracts").iterdir()} == {case.name for case in CONTRACTS}
    assert len({case.name for case in CONTRACTS}) == len(CONTRACTS)


def test_accept_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    case = next(case for case in CONTRACTS if case.name == "text-generation-dense-float32")
    monkeypatch.setattr(contracts, "CONTRACTS", (case,))
    monkeypatch.setattr(ops, "describe_ops", fresh_ops)
    fresh = list(contracts.fresh_graphs())  # what it is made of is compared above; here it is made once
    monkeypatch.setattr(contracts, "fresh_graphs", lambda _: iter(fresh))
    name = f"contracts/{case.name}.txt"
    changed = accept_graphs(tmp_path, "the first")
    assert name in changed
    assert check_graphs(tmp_path) == {}
    assert accept_graphs(tmp_path, "nothing") == []

    contract = tmp_path / name
    accepted = contract.read_text()
    contract.write_text(accepted.replace("50:f32", "30:f32"))
    (tmp_path / "ops" / "old.onnxtxt").write_text("no longer made\n")
    shown = CliRunner().invoke(app, ["dev", "graph", "check", str(tmp_path)])
    assert shown.exit_code == 1
    lines = [line for line in shown.stdout.splitlines() if re.match(r"[-+](?![-+])", line)]
    assert len(lines) == 5
    as_json = CliRunner().invoke(app, ["dev", "graph", "check", str(tmp_path), "--json"])
    assert as_json.exit_code == 1
    assert set(json.loads(as_json.stdout)["differences"]) == {name, "ops/old.onnxtxt"}
    assert re.match(r"-  %\d+ f32 = Div\(%\d+, 30:f32\)", lines[0])
    assert re.match(r"\+  %\d+ f32 = Div\(%\d+, 50:f32\)", lines[1])
    assert lines[4] == "-no longer made"
    assert "dev graph accept --why" in shown.stderr

    monkeypatch.setenv("CI", "true")
    with pytest.raises(SpecError, match="cannot be accepted in CI"):
        accept_graphs(tmp_path, "in CI")
    assert contract.read_text() != accepted

    monkeypatch.delenv("CI")
    assert set(accept_graphs(tmp_path, "the cap is 50")) == {name, "ops/old.onnxtxt"}
    assert contract.read_text() == accepted
    assert not (tmp_path / "ops" / "old.onnxtxt").exists()
    log = (tmp_path / CHANGES).read_text()
    assert log.index("the cap is 50") < log.index("the first")
    assert log.count("# Accepted changes") == 1
    assert f"- {name}: +2 -2" in log


def test_texts_that_were_never_accepted_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "lease.txt").write_text("not a graph")
    (tmp_path / CHANGES).write_text("# Changes of the lease\n")
    with pytest.raises(BundleError, match="never accepted"):
        accept_graphs(tmp_path, "by mistake")
    assert (tmp_path / "contracts" / "lease.txt").read_text() == "not a graph"


def test_a_reason_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(SpecError, match="needs a reason"):
        accept_graphs(tmp_path, " ")
    with pytest.raises(BundleError, match="no reviewed graphs"):
        check_graphs(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
