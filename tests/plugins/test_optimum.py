"""`optimum-cli export funnel` is `funnel-export export`: the same bundle, help and errors, found once installed."""

import functools
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import command_line
import pytest
from command_line import Done, call
from exported import Recipe
from optimum.commands import optimum_cli
from tracing import trace_anew

from funnel_export import cli

ROOT = Path(__file__).parents[2]
OURS = "import sys; from funnel_export.cli import main; sys.argv[0] = 'funnel-export'; main()"
OPTIMUM = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"


def run(code: str, *arguments: object) -> Done:
    """Run a program by its entry point, as the script of its name does, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


Both = Callable[..., tuple[Done, Done]]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """Runs optimum-cli and funnel-export with the same arguments, in this process."""

    def calls(*arguments: object) -> tuple[Done, Done]:
        given = [*map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "funnel", *given])
        theirs = call(optimum_cli.main)
        return theirs, call(lambda: cli.run(["export", *given], program="funnel-export"))

    return calls


def renamed(text: str) -> str:
    """What funnel-export prints, as optimum-cli would name the program; a line is padded to the width of the screen."""
    lines = text.replace("funnel-export export", "optimum-cli export funnel").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def stripped(text: str) -> str:
    """The text without what pads its lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def digests_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `funnel-export export` makes when it traces the model anew."""
    out = tmp_path_factory.mktemp("ours") / "bundle"
    options = ("--funnel", "1:3:2", "--task", "text-generation", "--pooling", "max")
    with pytest.MonkeyPatch.context() as patch:
        trace_anew(patch)
        made = command_line.run("export", Recipe().checkpoint(), out, *options)
    assert made.returncode == 0, made.stderr
    return out


@pytest.mark.slow
def test_the_bundle_is_the_same(ours: Path, tmp_path: Path) -> None:
    """With options first, unlike ours."""
    out = tmp_path / "bundle"
    options = ("--funnel", "1:3:2", "--task=text-generation", "--pooling=max")
    done = run(OPTIMUM, "export", "funnel", *options, Recipe().checkpoint(), out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: text-generation, float32\n"
    digests = digests_of(out)
    assert {"model.onnx", "manifest.json"} <= digests.keys()
    assert digests == digests_of(ours)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["-h"],
        ["C", "OUT", "--funnel", "1:3:2"],
        ["--funnel", "1:3:2", "C", "OUT"],
        ["C", "--funnel=1:3:2", "OUT", "--json"],
        ["--json", "--", "C", "OUT"],
        ["C", "--", "--", "-OUT"],
        ["--fun", "1:3:2", "--he", "-1", "@file", "", "two words"],
    ],
    ids=" ".join,
)
def test_arguments_arrive_as_they_are(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    monkeypatch.setattr(cli, "run", lambda *args, **options: runs.append((*args, options)))
    monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "funnel", *arguments])
    optimum_cli.main()
    assert runs == [(arguments, {"command": "export", "program": "optimum-cli export funnel"})]


def test_help_is_the_same(both: Both) -> None:
    theirs, ours = both("--help")
    assert (theirs.returncode, theirs.stderr) == (0, "")
    assert "Usage: optimum-cli export funnel [OPTIONS]" in theirs.stdout
    assert {"--funnel", "--slot-positions", "--json"} <= set(re.findall(r"--[a-z-]+", theirs.stdout))
    assert stripped(theirs.stdout) == renamed(ours.stdout)


def test_optimum_lists_it_with_its_first_sentence() -> None:
    listed = run(OPTIMUM, "export", "--help")
    assert listed.returncode == 0
    assert "funnel" in listed.stdout
    sentence = " ".join(listed.stdout.partition("{funnel}\n")[2].partition("\n\n")[0].split()).removeprefix("funnel ")
    assert sentence.endswith(".")
    assert sentence in " ".join(run(OURS, "export", "--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("CHECKPOINT", "OUT", "--funnel", "1:3"), 2, "error: invalid funnel\n"),
        (("--funnel", "1:9:2", "CHECKPOINT", "OUT"), 2, "beyond the model's layers"),
        (("CHECKPOINT", "FILE/out", "--funnel", "1:3:2"), 2, "error: "),
        (("CHECKPOINT", "OUT", "--pool", "max"), 2, "No such option: --pool"),
        (("CHECKPOINT", "OUT", "--pooling", "sum"), 2, "'sum' is not one of"),
        (("CHECKPOINT",), 2, "Missing argument 'OUT'"),
        ((), 2, "Missing argument 'CHECKPOINT'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_the_same(arguments: tuple[str, ...], code: int, message: str, both: Both, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = {"CHECKPOINT": Recipe().checkpoint(), "OUT": tmp_path / "out", "FILE/out": tmp_path / "file" / "out"}
    theirs, ours = both(*(places.get(each, each) for each in arguments))
    assert (theirs.returncode, theirs.stdout) == (code, "")
    assert message in theirs.stderr
    assert "Traceback" not in theirs.stderr
    assert stripped(theirs.stderr) == renamed(ours.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_mistake_of_ours_exits_with_70() -> None:
    done = run(
        f"from funnel_export.commands import export; export.export = None; {OPTIMUM}", "export", "funnel", "C", "OUT"
    )
    assert (done.returncode, done.stdout) == (70, "")
    assert "TypeError" in done.stderr


@pytest.mark.slow
def test_warnings_are_one_line(both: Both, tmp_path: Path) -> None:
    done, _ = both(Recipe().checkpoint(), tmp_path / "out", "--funnel", "none", "--dtype", "float16")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: Gemma2 is known to overflow in float16; bfloat16 is the safe choice, "
        "and funnel-export check shows whether this model overflows\n"
    )


def test_registering_is_light() -> None:
    code = (
        "from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands as load; import sys;"
        "print(*(command.__name__ for command, _ in load())); print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    commands, modules = map(str.split, done.stdout.splitlines())
    assert "FunnelExportCommand" in commands
    assert not set(modules) & {"funnel_export", "torch", "transformers", "typer", "click", "onnx", "numpy"}


def major(package: str) -> int:
    """The first number of a package's version, 0 without the package; nothing is imported, for pip minds."""
    try:
        return int(version(package).split(".")[0])
    except PackageNotFoundError:
        return 0


PACKAGE, PLUGIN = Path(), Path("plugins", "optimum")
"""The distributions, by their folders in the repository."""

Build = Callable[[Path], Path]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the wheel of a distribution, of a copy of its tree, since a build leaves its folders behind."""
    for package, oldest in {"pip": 21, "setuptools": 77}.items():
        if (found := major(package)) < oldest:
            pytest.skip(f"a wheel is built with {package} {oldest} or later; here it is {found or 'missing'}")

    def build(distribution: Path) -> Path:
        folder = tmp_path_factory.mktemp("wheel")
        built = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
        for name in ("funnel_export", "plugins"):
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=built)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / "tree")
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
        command = [sys.executable, "-m", "pip", "wheel", *map(str, options), str(folder / "tree" / distribution)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = folder.glob("*.whl")
        return made

    return functools.cache(build)


@pytest.mark.parametrize(("distribution", "package"), [(PACKAGE, "funnel_export"), (PLUGIN, "optimum")], ids=str)
def test_a_wheel_holds_its_own_package_only(distribution: Path, package: str, wheel: Build) -> None:
    """Beside funnel_export, the namespace of Optimum would pass for Optimum itself where that is not installed."""
    with zipfile.ZipFile(wheel(distribution)) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {package}
    sources = {str(path.relative_to(ROOT / distribution)) for path in (ROOT / distribution / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_the_wheels_are_found_by_optimum(wheel: Build, tmp_path: Path) -> None:
    for distribution in (PACKAGE, PLUGIN):
        with zipfile.ZipFile(wheel(distribution)) as archive:
            archive.extractall(tmp_path)
    # First on the path, and asked where the module came from: the tree itself may be installed too.
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands as load; load();"
        "print(sys.modules['optimum.commands.register.funnel'].__file__)"
    )
    done = run(code)
    assert done.stdout.strip() == str(tmp_path / "optimum" / "commands" / "register" / "funnel.py"), done.stderr


def test_without_optimum_there_is_no_optimum(wheel: Build, tmp_path: Path) -> None:
    """What transformers asks before it uses Optimum: whether it can be imported."""
    command = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel(PACKAGE))
    subprocess.run([sys.executable, *map(str, command)], capture_output=True, check=True)
    code = (
        "import importlib.util as u; print(*(u.find_spec(name) is not None for name in ('funnel_export', 'optimum')))"
    )
    alone = {"env": {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-S", "-c", code], **alone, check=True)
    assert done.stdout.split() == ["True", "False"]
