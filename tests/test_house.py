"""The house: names resolve under our root, the wheel carries nothing, files stay small."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "inception", "datasets")
# The entry point's name; MLflow's variables, set before any module imports mlflow.
WITH_CODE = {"cli", "tracking"}
ALLOWED = {*PACKAGES, "jobs", "infra", "tests", "pyproject.toml", "README.md", "Makefile"}


@pytest.mark.parametrize("name", PACKAGES)
def test_package_resolves_under_our_root(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / name / "__init__.py"


def test_no_distribution_provides_our_package_names() -> None:
    provided = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(provided.get(name, [])) <= {"rayception"}, f"{name}: {provided[name]}"


def test_package_names_do_not_break_the_libraries() -> None:
    """ray.train, mlflow and webdataset import beside a first-party package called datasets."""
    code = "import ray.train, ray.data, mlflow, webdataset; from datasets.order import Order"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_top_level_holds_nothing_else() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    visible = {line.split("/")[0] for line in tracked if line and not line.startswith(".")}
    assert visible <= ALLOWED


def test_packages_say_what_they_are_for() -> None:
    """A docstring that names each module, and no code but where it is said why."""
    for name in PACKAGES:
        assert (ROOT / name / "__init__.py").read_text() == ""
        for init in (ROOT / name).glob("*/__init__.py"):
            docstring, *code = ast.parse(init.read_text()).body
            modules = {file.stem for file in init.parent.glob("*.py")} - {"__init__", "__main__"}
            assert isinstance(docstring, ast.Expr)
            text = ast.literal_eval(docstring.value)
            named = {
                word
                for row in re.findall(r"^\| ([a-z_0-9, ]+) \|", text, re.MULTILINE)
                for word in row.split(", ")
            }
            assert named - {"module"} == modules, init
            assert len(modules) <= 12, init
            assert not code or init.parent.name in WITH_CODE, init


def test_lock_pins_every_requirement_of_the_project() -> None:
    lock = (ROOT / "infra" / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==\S+$", lock, flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    for requirement in importlib.metadata.requires("rayception") or []:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower()
        assert name in pinned, f"{name} is not pinned in infra/requirements.lock"
    assert "torch==2.13.0\n" in lock


def test_a_rank_that_sends_no_metrics_imports_no_mlflow() -> None:
    code = "import sys, orchestration.worker.train_loop; sys.exit('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# What a light verb may import from elsewhere.
LIGHT = {
    "annotated_doc", "annotated_types", "attr", "markdown_it", "mdurl", "omegaconf", "pydantic",
    "pydantic_core", "pygments", "rich", "shellingham", "typer", "typing_extensions",
    "typing_inspection", "yaml",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], set()),
        (["validate", "jobs/quickstart.yaml"], set()),
        (["plan", "jobs/quickstart.yaml"], set()),
    ],
    ids=["--help", "validate", "plan"],
)
def test_light_verbs_import_nothing_heavy(arguments: list[str], more: set[str]) -> None:
    code = (
        "import sys; from orchestration.cli.app import app\n"
        f"try: app({arguments}, standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "ours = {'orchestration', 'inception', 'datasets', '__main__'}\n"
        "found = {name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names - ours\n"
        "compiled = ('_cython', 'cython_runtime', '_sysconfigdata', '_distutils_hack')\n"
        f"more = [one for one in found - {LIGHT | more} if not one.startswith(compiled)]\n"
        "sys.exit(f'imported {more}' if more else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
