"""Commands that install optional packages: they name the packages of an extra, as pyproject.toml has them."""

import shlex
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from funnel_export.system import extras
from funnel_export.system.extras import install_command

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"benchmarks", "dev"}))
def test_an_extra_is_installed_by_the_names_of_its_packages(extra: str) -> None:
    program, action, *packages = shlex.split(install_command(extra))
    assert (program, action) == ("pip", "install")
    assert sorted(packages) == sorted(EXTRAS[extra])


def test_where_the_distribution_is_not_installed_a_clone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert install_command("openvino") == "pip install '.[openvino]' in a clone of this project"
