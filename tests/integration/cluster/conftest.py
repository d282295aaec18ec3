"""A real cluster of several machines in namespaces: head, nodes, services and a laptop."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.manifests.nodes import HEALTH_CHECKS
from orchestration.stack.services import REGION, free_ports
from tests.integration.cluster.machines import Machine, Network, why_not
from tests.waiting import BUSY, wait_for

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
DASHBOARD, GCS, S3, MLFLOW = 8265, 6379, 8333, 5000
START_LIMIT_S = 120


class RayCluster:
    """The machines by role, and how a person at the laptop calls rayception."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(folder)
        self.secrets = {name: secrets.token_hex(16) for name in ("access", "secret", "token")}
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "RAY"))
        }
        home = folder / "home"
        home.mkdir()
        self.base = clean | {
            "HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{clean['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.secrets["token"],
        }
        self.keys = {
            "AWS_ACCESS_KEY_ID": self.secrets["access"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["secret"],
            "AWS_DEFAULT_REGION": REGION,
        }
        self.services = self.network.add("services")
        self.laptop = self.network.add("laptop")
        self.head = self.network.add("head")
        self.nodes: dict[str, Machine] = {}

    # The services

    def start_s3(self) -> None:
        where = self.services
        names = "master.port master.port.grpc volume.port volume.port.grpc filer.port"
        names += " filer.port.grpc s3.port.grpc admin.port admin.port.grpc"
        ports = zip(names.split(), free_ports(9), strict=True)
        self.weed = where.start(
            str(BIN / "weed"), "-logtostderr=true", "mini", f"-dir={where.temp}",
            f"-ip={where.address}", "-ip.bind=0.0.0.0", f"-s3.port={S3}",
            *(f"-{name}={number}" for name, number in ports),
            "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false",
            "-master.telemetry=false", "-volume.preStopSeconds=0", "-volume.max=1000",
            "-bucket=data,runs,mlflow",
            environment=self.base | self.keys,
        )  # fmt: skip

    def start_mlflow(self) -> None:
        where = self.services
        self.mlflow = where.start(
            sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW),
            "-w", "1", "--backend-store-uri", f"sqlite:///{where.temp / 'mlflow.db'}",
            "--artifacts-destination", "s3://mlflow/artifacts",
            "--allowed-hosts", f"{where.address}:{MLFLOW}",
            environment=self.base | self.keys | {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_S3_ENDPOINT_URL": self.s3_url,
            },
        )  # fmt: skip

    @property
    def s3_url(self) -> str:
        return f"http://{self.services.address}:{S3}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.services.address}:{MLFLOW}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD}"

    # Ray

    def start_ray(self, machine: Machine, *arguments: str) -> None:
        machine.start(
            str(BIN / "ray"), "start", "--block", f"--node-ip-address={machine.address}",
            "--object-store-memory=100000000", "--disable-usage-stats", *arguments,
            environment=self.base | self.keys | HEALTH_CHECKS | {
                "RAY_DISABLE_MEMORY_MONITOR": "1",
                "RAY_memory_monitor_refresh_ms": "0",
                "RAY_JOB_STOP_SIGNAL": "SIGINT",
                "RAY_JOB_STOP_WAIT_TIME_S": "60",
            },
            own_processes=True,
        )  # fmt: skip

    def start_head(self) -> None:
        self.start_ray(
            self.head, "--head", f"--port={GCS}", "--dashboard-host=0.0.0.0", "--num-cpus=0",
            f"--dashboard-port={DASHBOARD}", f"--temp-dir={self.network.folder_of_ray}",
        )  # fmt: skip

    def wait_for_head(self) -> None:
        wait_for(
            lambda: self.get(f"{self.dashboard_url}/api/gcs_healthz") == "success",
            START_LIMIT_S,
            lambda: self.head.log.read_text()[-2000:],
        )

    def start_node(self, name: str, *, cpus: int = 1, resources: str | None = None) -> Machine:
        """A node joins; one of a name that was there before comes back with its address."""
        machine = self.network.machines.get(name) or self.network.add(name)
        self.nodes[name] = machine
        marked = resources or json.dumps({"accelerator_type:H100": 1})
        self.start_ray(
            machine, f"--address={self.head.address}:{GCS}", f"--num-cpus={cpus}",
            "--num-gpus=1", f"--resources={marked}",
        )  # fmt: skip
        return machine

    def alive(self) -> list[dict[str, Any]]:
        """The nodes that the head believes alive, as its dashboard says."""
        got = self.get(f"{self.dashboard_url}/api/v0/nodes?detail=1")
        try:
            rows = json.loads(got)["data"]["result"]["result"]
        except (ValueError, KeyError, TypeError):
            return []
        return [row for row in rows if row["state"] == "ALIVE"]

    def wait_for_nodes(self, count: int, limit_s: float = START_LIMIT_S) -> None:
        """Until `count` nodes are alive, the head among them."""
        wait_for(lambda: len(self.alive()) == count, limit_s, lambda: f"alive: {self.alive()}")

    # The laptop

    def get(self, url: str) -> str:
        """What a URL answers at the laptop; '' where it does not."""
        token = f"Authorization: Bearer {self.secrets['token']}"
        done = subprocess.run(
            self.laptop.command("curl", "-s", "-m", "5", "-H", token, url),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    def job(self, submission: str, part: str = "") -> dict[str, Any]:
        """What the Jobs API says of a submission, or of its `/logs`; nothing while the head is
        away. Asked by curl: a command of ours a second would take the machine's cores from the
        recovery that is timed."""
        try:
            found: dict[str, Any] = json.loads(
                self.get(f"{self.dashboard_url}/api/jobs/{submission}{part}")
            )
        except ValueError:
            return {}
        return found

    def log(self, submission: str) -> str:
        return str(self.job(submission, "/logs").get("logs", ""))

    def call(
        self, *arguments: str, timeout_s: float = 300, code: int | None = 0
    ) -> "subprocess.CompletedProcess[str]":
        """`rayception ARGUMENTS` at the laptop, which has the cluster's token and no other key."""
        done = subprocess.run(
            self.laptop.command(str(BIN / "rayception"), *arguments),
            cwd=ROOT, capture_output=True, text=True, timeout=BUSY * timeout_s,
            env=self.base | {
                "RAYCEPTION_HOME": str(self.folder / "laptop"),
                "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            },
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def python(self, machine: Machine, code: str, timeout_s: float = 120) -> str:
        """What a piece of Python prints there, with the keys of the store."""
        done = subprocess.run(
            machine.command(sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True,
            timeout=BUSY * timeout_s, env=self.base | self.keys,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, machine: Machine, code: str) -> Any:
        """What a piece of Python prints as JSON there."""
        return json.loads(self.python(machine, code).splitlines()[-1])

    @property
    def places(self) -> list[str]:
        """The overrides that send a job here."""
        return [
            f"cluster.address={self.dashboard_url}",
            f"storage.endpoint_url={self.s3_url}",
            f"storage.region={REGION}",
            "storage.addressing=path",
            f"tracking.uri={self.mlflow_url}",
        ]

    def close(self) -> None:
        self.network.close()


def submission_of(text: str) -> str:
    found = re.search(r"submitted (\S+) to", text)
    assert found is not None, text
    return found[1]


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Head and three nodes of one rank each, two of which a job of two ranks needs."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"a cluster of several machines: {reason}")
    made = RayCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start_s3()
        made.start_head()
        made.start_mlflow()
        made.wait_for_head()
        for name in ("one", "two", "three"):
            made.start_node(name)
        made.wait_for_nodes(4)
        wait_for(
            lambda: made.get(f"{made.mlflow_url}/health") == "OK",
            START_LIMIT_S,
            lambda: made.services.log.read_text()[-2000:],
        )
        yield made
    finally:
        made.close()
