"""The house: names resolve under our root, the wheel carries nothing, files stay small."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "inception", "datasets")
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


def test_init_files_are_empty() -> None:
    for name in PACKAGES:
        assert (ROOT / name / "__init__.py").read_text() == ""


def test_lock_pins_every_requirement_of_the_project() -> None:
    lock = (ROOT / "infra" / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==\S+$", lock, flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    for requirement in importlib.metadata.requires("rayception") or []:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower()
        assert name in pinned, f"{name} is not pinned in infra/requirements.lock"
    assert "torch==2.13.0\n" in lock


def test_a_rank_that_sends_no_metrics_imports_no_mlflow() -> None:
    code = "import sys, orchestration.worker; sys.exit('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["validate", "plan"], ids=["validate", "plan"])
def test_light_verbs_import_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from orchestration.cli import app\n"
        f"app(['{verb}', 'jobs/quickstart.yaml'], standalone_mode=False)\n"
        "heavy = {'ray', 'torch', 'mlflow', 'boto3', 'webdataset', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
