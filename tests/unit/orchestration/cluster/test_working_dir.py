"""The files that are uploaded: the checkout without what git ignores, and the job."""

from pathlib import Path

import pytest

from orchestration.cluster import working_dir
from orchestration.cluster.working_dir import JOB_FILE, stage_working_dir
from orchestration.errors import JobError
from orchestration.job.load import load_job

ROOT = Path(__file__).resolve().parents[4]
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"


def test_what_git_does_not_ignore_is_uploaded() -> None:
    job = load_job(QUICKSTART, ["optim.lr=0.123"])
    with stage_working_dir({JOB_FILE: job}) as folder:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert load_job(folder / JOB_FILE) == job
    assert {"orchestration/cli/app.py", "inception/step.py", "datasets/order.py"} <= names
    assert not [n for n in names if n.startswith((".venv", ".git/", ".rayception", "tests"))]
    assert not [n for n in names if n.endswith(".pyc")]
    assert not folder.exists()


def test_the_error_of_a_too_large_checkout_names_its_largest_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(working_dir, "MAX_UPLOAD_BYTES", 1000)
    with (
        pytest.raises(JobError, match=r"MiB to upload; .* is the largest file"),
        stage_working_dir({JOB_FILE: load_job(QUICKSTART)}),
    ):
        pass


def test_outside_git_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(working_dir, "ROOT", tmp_path)
    with (
        pytest.raises(JobError, match="got no git checkout"),
        stage_working_dir({JOB_FILE: load_job(QUICKSTART)}),
    ):
        pass
