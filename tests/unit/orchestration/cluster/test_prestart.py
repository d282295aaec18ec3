"""The environment and the imports of prestarted worker processes."""

import os
import subprocess
import sys

import pytest

from orchestration.cluster.worker_imports import CPUS_VARIABLE, KIND_VARIABLE
from orchestration.job.load import load_job
from tests.forks import ROOT


def test_ranks_get_what_ray_train_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same strings: otherwise Ray would not give them the prestarted processes."""
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    from orchestration.cluster.prestart import RAY_TRAIN_VARIABLES, set_environment

    for name in [name for name in os.environ if name.startswith("RAY_TRAIN")]:
        monkeypatch.delenv(name)
    ours = set_environment(load_job("jobs/quickstart.yaml"))
    propagated = get_env_vars_to_propagate()
    assert propagated == {
        name: value for name, value in ours.items() if name.startswith("RAY_TRAIN")
    }
    assert set(RAY_TRAIN_VARIABLES) < set(propagated)
    assert (ours[KIND_VARIABLE], ours[CPUS_VARIABLE]) == ("cpu", "1")
    for name in propagated:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("kind", "has_dynamo"), [("cpu", True), ("gpu", False)])
def test_the_hook_imports_beside_and_torch_has_its_share_of_cores(
    kind: str, has_dynamo: bool
) -> None:
    code = (
        "import sys; from orchestration.cluster import worker_imports\n"
        "worker_imports.start(); assert 'ray.train' in sys.modules; worker_imports.wait()\n"
        "import torch; assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
        "assert 'orchestration.worker.train_loop' in sys.modules\n"
        "assert 'mlflow' not in sys.modules\n"
        f"assert ('torch._dynamo' in sys.modules) == {has_dynamo}"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=environment | {KIND_VARIABLE: kind, CPUS_VARIABLE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
