"""The environment and the imports of prestarted worker processes."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated.node_manager_pb2 import PrestartWorkersReply
from ray.core.generated.node_manager_pb2_grpc import (
    NodeManagerServiceServicer,
    add_NodeManagerServiceServicer_to_server,
)
from ray.core.generated.runtime_environment_pb2 import RuntimeEnvInfo

from orchestration.cluster.worker_imports import CPUS_VARIABLE, KIND_VARIABLE
from orchestration.job.load import load_job
from orchestration.stack.services import LOOPBACK, free_ports
from orchestration.stack.state import new_stack
from orchestration.stack.worker_pool import POOL_FILE, take_pool
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


class Node(NodeManagerServiceServicer):  # type: ignore[misc]
    """A raylet that starts what it is asked for, or refuses."""

    def __init__(self, *, is_refusing: bool) -> None:
        self.is_refusing, self.asked = is_refusing, 0

    def PrestartWorkers(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.is_refusing:
            context.abort(grpc.StatusCode.UNAVAILABLE, "it is going down")
        self.asked += request.num_workers
        return PrestartWorkersReply()


@pytest.mark.parametrize("fault", ["", "the node refuses", "no runtime environment"])
def test_a_pool_is_saved_only_if_it_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    from orchestration.cluster import prestart

    node, [port] = Node(is_refusing=fault == "the node refuses"), free_ports(1)
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeManagerServiceServicer_to_server(node, server)
    server.add_insecure_port(f"{LOOPBACK}:{port}")
    entry = {"NodeID": "a", "Alive": True, "NodeManagerAddress": LOOPBACK, "NodeManagerPort": port}
    monkeypatch.setattr(ray, "nodes", lambda: [entry])

    def build_runtime_env(variables: object) -> RuntimeEnvInfo:
        if fault == "no runtime environment":
            raise ValueError("got a runtime environment that Ray does not know")
        return RuntimeEnvInfo(serialized_runtime_env="{}")

    monkeypatch.setattr(prestart, "_runtime_env", build_runtime_env)
    stack = replace(new_stack(tmp_path), ray_temp="one")
    for name in [*prestart.RAY_TRAIN_VARIABLES, prestart.POLL_VARIABLE]:
        monkeypatch.setenv(name, "0")  # restored at the end
    server.start()
    try:
        prestart.fill_pool(load_job("jobs/quickstart.yaml"), stack)
    finally:
        server.stop(None).wait(20)
        prestart._pool_variables.clear()
    assert (stack.folder / POOL_FILE).exists() == (not fault)
    assert node.asked == (0 if fault else 2)
    environment = prestart.set_environment(load_job("jobs/quickstart.yaml"))
    assert take_pool(stack, environment)[0] == node.asked


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
