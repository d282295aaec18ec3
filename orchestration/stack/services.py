"""The three services of the embedded stack: how each is started, and how it is known ready.

SeaweedFS (`weed mini`: master, volume, filer and S3 gateway in one process), the MLflow server
and a Ray head. Facts that shaped the command lines: weed's telemetry is on and its address is the
machine's unless told otherwise; its master, volume and filer ports ask for no password, so they
stay on loopback; MLflow's job runner would start ten more processes; Ray's GCS and raylet listen
on every interface whatever the node's address, so the stack's Ray asks for a token.
"""

import os
import random
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import StoreError
from datasets.storage.store import Store, StoreConfig
from orchestration.errors import ServiceError

LOOPBACK = "127.0.0.1"
REGION = "us-east-1"
BUCKETS = ("data", "runs", "mlflow")
# Linux takes ports by itself from 32,768 on; Ray gives 10,002 to 19,999 to its workers.
PORT_RANGE = (20_000, 32_768)
PORT_TRIES = 1000
RAY_OBJECT_STORE_BYTES = 200_000_000  # Ray's own objects only: batches never pass through it


_handed_out: set[int] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class Secrets:
    """What the stack's services ask for. Generated once a stack; never printed."""

    access_key: str
    secret_key: str
    ray_token: str

    def __repr__(self) -> str:
        return "Secrets(***)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A service's process: arguments and what is added to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Command({self.arguments[0]})"


def free_ports(count: int) -> list[int]:
    """`count` different ports free on loopback, none of them handed out before.

    They lie below the range from which the kernel takes ports by itself: a port of that range
    that is free now may belong to some connection, or to a service that asked for any port, when
    its own service comes to bind it (Ray's dashboard then silently takes another one).
    """
    found: list[int] = []
    for _ in range(PORT_TRIES):
        if len(found) == count:
            return found
        port = random.SystemRandom().randrange(*PORT_RANGE)
        if port not in _handed_out and is_port_free(port):
            _handed_out.add(port)
            found.append(port)
    raise ServiceError(
        f"ports: got {len(found)} free ones of {count} between {PORT_RANGE[0]} and "
        f"{PORT_RANGE[1]}; the stack needs that many. Stop what holds them (see `ss -ltn`)."
    )


def reserve(ports: Iterable[int]) -> None:
    """free_ports gives none of these away: another service would bind it before its own does."""
    _handed_out.update(ports)


def is_port_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def s3_environment(secrets: Secrets) -> dict[str, str]:
    """What a client of the embedded store needs in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": secrets.access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
        "AWS_DEFAULT_REGION": REGION,
    }


def s3_command(folder: Path, port: int, secrets: Secrets) -> Command:
    data = folder / "s3"
    data.mkdir(parents=True, exist_ok=True)
    names = "master.port master.port.grpc volume.port volume.port.grpc filer.port filer.port.grpc"
    names += " s3.port.grpc admin.port admin.port.grpc"
    ports = zip(names.split(), free_ports(9), strict=True)
    return Command(
        arguments=(
            str(Path(sys.executable).parent / "weed"),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-s3.port={port}",
            *(f"-{name}={number}" for name, number in ports),
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
            "-volume.max=1000",
            f"-bucket={','.join(BUCKETS)}",
        ),
        environment=s3_environment(secrets),
    )


def s3_is_ready(port: int) -> bool:
    """Ready is every bucket there and an accepted PUT: the gateway answers before the buckets are
    made, and before the volumes behind it can write. The credentials stand in this process's
    environment."""
    store = Store(
        StoreConfig(endpoint_url=f"http://{LOOPBACK}:{port}", region=REGION, addressing="path")
    )
    try:
        for bucket in BUCKETS:
            store.exists(f"s3://{bucket}/.ready")
        store.write("s3://runs/.ready", b"ready")
    except StoreError:
        return False
    return True


def mlflow_command(folder: Path, port: int, s3_url: str | None, secrets: Secrets) -> Command:
    """`s3_url` is the embedded store's; None keeps artifacts beside the database."""
    data = folder / "mlflow"
    data.mkdir(parents=True, exist_ok=True)
    artifacts = "s3://mlflow/artifacts" if s3_url else (data / "artifacts").as_uri()
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if s3_url:
        environment |= {"MLFLOW_S3_ENDPOINT_URL": s3_url, **s3_environment(secrets)}
    return Command(
        arguments=(
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", LOOPBACK, "--port", str(port), "-w", "1"),
            *("--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}"),
            *("--artifacts-destination", artifacts),
            # An open browser tab keeps connections that its end would wait for.
            *("--uvicorn-opts", "--timeout-graceful-shutdown=3"),
        ),
        environment=environment,
    )


def mlflow_is_ready(port: int) -> bool:
    return _answers(f"http://{LOOPBACK}:{port}/health")


def ray_command(
    temp_folder: Path, port: int, dashboard_port: int, num_cpus: int, secrets: Secrets
) -> Command:
    """`temp_folder` must be short: Ray's socket paths below it may not pass 107 bytes."""
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "ray-client-server-port",
    )
    *ports, dashboard_metrics, autoscaler_metrics = free_ports(len(names) + 2)
    return Command(
        arguments=(
            str(Path(sys.executable).parent / "ray"),
            *("start", "--head", "--block", f"--port={port}"),
            *(f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}"),
            *(f"--dashboard-port={dashboard_port}", f"--temp-dir={temp_folder}"),
            *(f"--num-cpus={num_cpus}", f"--object-store-memory={RAY_OBJECT_STORE_BYTES}"),
            "--disable-usage-stats",
            *(f"--{name}={number}" for name, number in zip(names, ports, strict=True)),
        ),
        environment={
            **ray_environment(secrets),
            # Fixed ports otherwise, which clash between two clusters on one machine.
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            # Jobs and their workers print as they go, and Ray Train says what it does.
            "PYTHONUNBUFFERED": "1",
            # One machine: gloo need not resolve its host name, nor leave loopback.
            **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
            # A submitted job's driver is this environment's python, and is interrupted like a
            # command in a terminal.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
        },
    )


def ray_environment(secrets: Secrets) -> dict[str, str]:
    """What a client of the stack's Ray needs in its environment."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.ray_token}


def ray_is_ready(dashboard_port: int) -> bool:
    return _answers(f"http://{LOOPBACK}:{dashboard_port}/api/gcs_healthz")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def last_words(log: Path) -> str:
    """Why a service ended: its last line, or why Ray's core gave up, which stands above it."""
    text = log.read_text(errors="replace").strip()
    at = text.rfind("Check failed")
    line = text[at:].splitlines()[0] if at >= 0 else text.rpartition("\n")[2]
    return line.strip()[:300] or "it printed nothing"
