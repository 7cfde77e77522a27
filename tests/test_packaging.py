"""The package as a package: directions of imports, sizes of files, public names, the wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import nnpcalc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nnpcalc"

#: A module may import from its own and from lower lines, never from a higher one.
LEVELS = (
    ("units",),
    ("state",),
    ("checks",),
    ("batch",),
    ("neighbors",),
    ("layers",),
    ("models",),
    ("terms",),
    ("potential",),
    ("kernels", "committee"),
    ("cards",),
    ("torchscript", "golden", "factory"),
    ("weights",),
    ("backends",),
    ("evaluation",),
    (
        "verify",
        "calculator",
        "optimizer",
        "normal_modes",
        "states",
        "md",
        "train",
        "interop",
        "testing",
    ),
    ("convert", "report", "smiles"),
    ("cli",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}

#: Who may know ASE; everything else sees tensors.
KNOWS_ASE = {
    "state",
    "batch",
    "evaluation",
    "calculator",
    "md",
    "optimizer",
    "normal_modes",
    "states",
    "interop",
    "testing",
    "train",
    "cli",
    "report",
    "smiles",
}


def source_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_weights" not in path.parts)


def module_of(path: Path) -> str:
    """First part of the module's name inside the package; "" for nnpcalc/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Full names of all modules that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from nnpcalc import weights` imports the module as much as `import nnpcalc.weights`
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def imports_of(path: Path) -> list[str]:
    package = ("nnpcalc", *path.relative_to(PACKAGE).parts[:-1])
    return imported_modules(ast.parse(path.read_text()), package)


def upward(module: str, names: list[str]) -> list[str]:
    """Those imported names that lie above the module."""
    wrong = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "nnpcalc" and parts[1] in LEVEL and LEVEL[parts[1]] > LEVEL[module]:
            wrong.append(name)
    return wrong


def test_every_module_has_its_place() -> None:
    modules = {module_of(path) for path in source_files()} - {""}
    assert modules <= set(LEVEL), f"give {modules - set(LEVEL)} a line in LEVELS"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    if module_of(path):
        assert upward(module_of(path), imports_of(path)) == []


def test_an_upward_import_is_noticed() -> None:
    lines = (
        "from nnpcalc.weights import load_potential",
        "import nnpcalc.weights",
        "from nnpcalc import weights",
        "from . import weights",
        "def f():\n    from .weights import load_potential",
    )
    for line in lines:
        assert upward("batch", imported_modules(ast.parse(line), ("nnpcalc",))), line
    relative = imported_modules(ast.parse("from ..weights import x"), ("nnpcalc", "models"))
    assert upward("models", relative)
    assert not upward("weights", imported_modules(ast.parse("from .batch import x"), ("nnpcalc",)))


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_doors_know_ase(path: Path) -> None:
    if module_of(path) not in KNOWS_ASE:
        assert [name for name in imports_of(path) if name.split(".")[0] == "ase"] == []


def test_files_are_rooms() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "examples").rglob("*.py"))
    lengths = {path: len(path.read_text().splitlines()) for path in source_files() + tests}
    assert {str(path): n for path, n in lengths.items() if n >= 500} == {}


def test_public_names() -> None:
    assert len(nnpcalc.__all__) <= 16
    for name in nnpcalc.__all__:
        assert getattr(nnpcalc, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'NNPCalculater'"):
        _ = nnpcalc.NNPCalculater  # type: ignore[attr-defined]


def test_importing_is_cheap() -> None:
    code = "import nnpcalc, sys; print(sorted({'torch', 'ase', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == nnpcalc.__version__
    assert f"## {nnpcalc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def model_files() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT / "weights"))
        for path in (ROOT / "weights").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="pip install -e .[test] brings the build tools")
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), "."],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (built,) = target.glob("nnpcalc-*.whl")
    return built


def test_wheel_holds_the_weights(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).namelist()
    for file in model_files():
        assert f"nnpcalc/_weights/{file}" in inside
    assert not [name for name in inside if name.startswith(("tests/", "weights/", "examples/"))]


def test_installed_wheel_finds_the_weights(wheel: Path, tmp_path: Path) -> None:
    """Installed by pip into an environment of its own, where the source tree cannot be imported."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, cwd=tmp_path)
    # Only the dependencies come from this environment; its own nnpcalc stays behind the wheel's.
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    code = (
        "import nnpcalc.weights as w, nnpcalc; print(nnpcalc.__file__); "
        "print(w.shipped_directory()); print(*w.list_models())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, directory, models = done.stdout.split("\n")[:3]
    assert file.startswith(str(site)) and directory == str(site / "nnpcalc" / "_weights")
    shipped = sorted(path.parent.name for path in (ROOT / "weights").glob("*/card.json"))
    assert models.split() == shipped
