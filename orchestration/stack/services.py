"""The three services of the embedded stack: the command that starts each, and its readiness check.

SeaweedFS (`weed mini`: master, volume, filer and S3 gateway in one process), the MLflow server and
a Ray head. Nothing that listens gives or takes anything from a caller without the stack's secrets:
another user of this machine reaches loopback too. Reasons for some options: weed sends telemetry
and takes the machine's address by default; its master, volume, filer and admin ports know no
password, so they ask for the stack's certificate (mutual TLS); MLflow's job runner would start ten
more processes; Ray's GCS and raylet listen on every interface whatever the node's address, so the
stack's Ray requires a token.
"""

import os
import random
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from datasets.errors import StoreError
from datasets.storage.socket_folder import socket_folder
from datasets.storage.store import Store, StoreConfig
from orchestration.errors import ServiceError
from orchestration.stack.certificate import write_certificate

LOOPBACK = "127.0.0.1"
TOKEN_VARIABLE = "RAYCEPTION_MLFLOW_TOKEN"
MLFLOW_APP = "rayception"  # orchestration/tracking/server_app.py, by pyproject.toml's entry point
REGION = "us-east-1"
HTTPS_PARTS = ("MASTER", "VOLUME", "FILER", "ADMIN")
BUCKETS = ("data", "runs", "mlflow")
HEALTH_PATHS = {"mlflow": "/health", "ray": "/api/gcs_healthz"}
# Linux assigns ports from 32,768 on by itself; Ray gives 10,002 to 19,999 to its workers.
PORT_RANGE = (20_000, 32_768)
PORT_TRIES = 1000
RAY_OBJECT_STORE_BYTES = 200_000_000  # for Ray's own objects: batches do not pass through it

_reserved: set[int] = set()


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Secrets:
    """The credentials of a stack's services, generated with the stack and never printed."""

    access_key: str
    secret_key: str
    ray_token: str
    mlflow_token: str


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Command:
    """A service's command and the variables added to its environment, with secrets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def free_ports(count: int) -> list[int]:
    """Reserves and returns `count` different ports that are free on loopback. Raises ServiceError.

    They lie below the range from which the kernel assigns ports: one of that range may be taken by
    some connection or process before its service binds it, and Ray's dashboard would then silently
    choose another port.
    """
    ports: list[int] = []
    for _ in range(PORT_TRIES):
        if len(ports) == count:
            return ports
        port = random.SystemRandom().randrange(*PORT_RANGE)
        if port not in _reserved and is_port_free(port):
            reserve([port])
            ports.append(port)
    raise ServiceError(
        f"ports: got {len(ports)} free ones of {count} between {PORT_RANGE[0]} and "
        f"{PORT_RANGE[1]}; the stack needs that many. Stop what holds them (see `ss -ltn`)."
    )


def reserve(ports: Iterable[int]) -> None:
    """Keeps `free_ports` from returning these ports, which a service is yet to bind."""
    _reserved.update(ports)


def is_port_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def s3_environment(secrets: Secrets) -> dict[str, str]:
    """The environment of a client of the embedded store."""
    return {
        "AWS_ACCESS_KEY_ID": secrets.access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use_embedded_store(secrets: Secrets) -> None:
    """Makes the embedded store the one of this process and of what it starts. The person's own
    configuration of AWS is for other stores: neither its files nor its variables are read."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(s3_environment(secrets))


def s3_command(folder: Path, port: int, secrets: Secrets) -> Command:
    """To be started in `folder`: the paths of its sockets are relative, as they must be short."""
    data = folder / "s3"
    certificate, key = write_certificate(data / "tls", LOOPBACK)
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
            "-filer.localSocket=s3/filer.sock",
            "-s3.localSocket=s3/s3.sock",
        ),
        environment={
            **s3_environment(secrets),
            "HOME": str(data),  # where it would look for a configuration of the person's
            **_mutual_tls(certificate, key),
        },
    )


def _mutual_tls(certificate: Path, key: Path) -> dict[str, str]:
    """SeaweedFS's variables (`weed scaffold -config=security`): every part shows and asks for the
    same certificate, over gRPC and over HTTP. The S3 gateway asks for signatures instead."""
    variables = {"WEED_GRPC_CA": str(certificate), "WEED_HTTPS_CLIENT_ENABLED": "true"}
    parts = [f"GRPC_{part}" for part in ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER")]
    parts += ["GRPC_CLIENT", *(f"HTTPS_{part}" for part in ("CLIENT", *HTTPS_PARTS))]
    for part in parts:
        variables |= {f"WEED_{part}_CERT": str(certificate), f"WEED_{part}_KEY": str(key)}
        if part.startswith("HTTPS"):
            variables[f"WEED_{part}_CA"] = str(certificate)
    return variables


def is_ready(service: str, url: str) -> bool:
    """url: of a client; of the dashboard for Ray.

    s3 is ready when every bucket exists and a PUT succeeds, with the credentials in this process's
    environment: its gateway answers before it has created them, and before its volumes can write.
    """
    if service in HEALTH_PATHS:
        try:
            with urllib.request.urlopen(url + HEALTH_PATHS[service], timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False
    store = Store(StoreConfig(endpoint_url=url, region=REGION, addressing="path"))
    try:
        for bucket in BUCKETS:
            store.exists(f"s3://{bucket}/.ready")
        store.write("s3://runs/.ready", b"ready")
    except StoreError:
        return False
    return True


def mlflow_command(folder: Path, port: int, s3_url: str | None, secrets: Secrets) -> Command:
    """s3_url: of the embedded store; None: artifacts lie beside the database.

    Raises ServiceError.
    """
    if not entry_points(group="mlflow.app", name=MLFLOW_APP):
        raise ServiceError(
            f"{MLFLOW_APP}: got an installation of an earlier version; MLflow does not find the "
            "application that asks for the stack's token. Run `make venv`, or `pip install -c "
            "infra/requirements.lock -e .`, again."
        )
    data = folder / "mlflow"
    artifacts = "s3://mlflow/artifacts" if s3_url else (data / "artifacts").as_uri()
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        TOKEN_VARIABLE: secrets.mlflow_token,
    }
    if s3_url:
        environment |= {"MLFLOW_S3_ENDPOINT_URL": s3_url, **s3_environment(secrets)}
    return Command(
        arguments=(
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", LOOPBACK, "--port", str(port), "-w", "1"),
            *("--app-name", MLFLOW_APP),
            *("--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}"),
            *("--artifacts-destination", artifacts),
            # Otherwise it waits at its end for connections that a browser tab keeps open.
            *("--uvicorn-opts", "--timeout-graceful-shutdown=3"),
        ),
        environment=environment,
    )


def make_ray_folder() -> str:
    """A new private folder for Ray's sockets and logs. Raises StoreError if none can be short
    enough."""
    session = "/rayception-12345678/session_2026-01-01_00-00-00_123456_4194304/sockets/"
    folder = socket_folder(len(f"{session}plasma_store.12"))
    return tempfile.mkdtemp(prefix="rayception-", dir=folder)


def ray_command(
    temp_folder: Path, port: int, dashboard_port: int, num_cpus: int, secrets: Secrets
) -> Command:
    """temp_folder: of `make_ray_folder`."""
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "ray-client-server-port",
    )
    ports = free_ports(len(names))
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
            # These two servers of metrics ask for no token; without a valid port they do not start.
            "DASHBOARD_METRIC_PORT": "-1",
            "AUTOSCALER_METRIC_PORT": "-1",
            "TMPDIR": str(temp_folder.parent),
            "PYTHONUNBUFFERED": "1",  # logs of jobs and workers can be followed
            # On one machine, gloo need not resolve the host name, nor leave loopback.
            **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
            # A submitted driver runs this environment's Python, and is stopped as by Ctrl-C.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
        },
    )


def ray_environment(secrets: Secrets) -> dict[str, str]:
    """The environment of a client of the stack's Ray."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.ray_token}


def failure_reason(log: Path) -> str:
    """Why a service ended: its last failed check (of Ray's core), else the last line of its log."""
    text = log.read_text(errors="replace").strip()
    start = text.rfind("Check failed")
    line = text[start:].splitlines()[0] if start >= 0 else text.rpartition("\n")[2]
    return line.strip()[:300] or "it printed nothing"
