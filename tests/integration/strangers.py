"""What another user of this machine gets from the processes of a stack, without their secrets.

Every listening port and Unix socket is asked over HTTP, HTTPS and gRPC, with what their services
would understand: to list, read, write and delete. Run as a program, with the user's number and the
addresses as JSON, it gives up its rights and prints what was answered.
"""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import urllib3

NOBODY = 65534
LIMIT_S = 2.0
urllib3.disable_warnings()
REQUESTS = (
    ("GET", "/"), ("GET", "/metrics"), ("GET", "/version"), ("GET", "/ui/index.html"),
    # SeaweedFS: master, volume, filer, S3
    ("GET", "/dir/status"), ("GET", "/dir/assign"), ("GET", "/vol/status"), ("GET", "/status"),
    ("POST", "/submit"), ("GET", "/buckets/"), ("GET", "/buckets/data/?limit=10"),
    ("PUT", "/buckets/data/stranger"), ("DELETE", "/buckets/data/stranger"),
    ("GET", "/data?list-type=2"), ("PUT", "/data/stranger"), ("DELETE", "/runs/.ready"),
    # MLflow
    ("GET", "/api/2.0/mlflow/experiments/search?max_results=5"),
    ("POST", "/api/2.0/mlflow/experiments/create"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/stranger"), ("GET", "/graphql"),
    ("POST", "/rayception-login"),
    # Ray: dashboard, agents
    ("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/nodes?view=summary"),
    ("GET", "/api/v0/tasks"), ("GET", "/logs"), ("GET", "/api/local_raylet_healthz"),
    ("POST", "/get_or_create_runtime_env"), ("GET", "/api/job_agent/jobs/"),
    ("PUT", "/api/packages/gcs/stranger.zip"), ("GET", "/worker/traceback?pid=1"),
)  # fmt: skip
CALLS = (
    "/master_pb.Seaweed/Assign", "/master_pb.Seaweed/VolumeList",
    "/filer_pb.SeaweedFiler/ListEntries", "/filer_pb.SeaweedFiler/GetFilerConfiguration",
    "/filer_pb.SeaweedFiler/CreateEntry", "/filer_pb.SeaweedFiler/DeleteEntry",
    "/volume_server_pb.VolumeServer/VolumeServerStatus", "/s3_pb.SeaweedS3/Configure",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys", "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.NodeManagerService/GetNodeStats", "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats", "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/Exit", "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.RayletDriver/KvPut", "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback", "/ray.rpc.LogService/ListLogs",
)  # fmt: skip


def answered(processes: list[psutil.Process]) -> list[list[Any]]:
    """[address, request, what was answered] of all that gave or took something."""
    ports, paths = listening(processes)
    assert len(ports) > 10, ports
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.strangers", json.dumps([ports, paths])],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: list[list[Any]] = json.loads(done.stdout)
    return result


def listening(processes: list[psutil.Process]) -> tuple[list[tuple[str, int]], list[str]]:
    """(addresses that the processes listen on, paths of their Unix sockets)."""
    ports: set[tuple[str, int]] = set()
    paths: set[str] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add((connection.laddr.ip, connection.laddr.port))
            folder = process.cwd()
            for connection in process.net_connections("unix"):
                if connection.laddr and not connection.raddr:
                    paths.add(os.path.join(folder, connection.laddr))
    return sorted(ports), sorted(paths)


def ask_http(scheme: str, host: str, port: int) -> Iterator[tuple[str, str]]:
    """What is given or taken, of a port that speaks HTTP: one that does not answers nothing."""
    pool = urllib3.PoolManager(
        cert_reqs="CERT_NONE", retries=False, timeout=urllib3.Timeout(LIMIT_S)
    )
    has_answered = False
    for method, path in REQUESTS:
        body = None if method == "GET" else b'{"name": "stranger", "entrypoint": "id"}'
        headers = {"Content-Type": "application/json"}
        try:
            url = f"{scheme}://{host}:{port}{path}"
            answer = pool.request(method, url, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError:
            if not has_answered:
                return
            continue
        has_answered = True
        if answer.status < 400 and (answer.data or method != "GET"):
            yield f"{scheme} {method} {path}", f"{answer.status} {answer.data[:80]!r}"


def ask_grpc(target: str, certificate: bytes | None) -> Iterator[tuple[str, str]]:
    """certificate: the server's own, for TLS without one of ours; None: no TLS."""
    if certificate is None:
        channel = grpc.insecure_channel(target)
    else:
        options = [("grpc.ssl_target_name_override", "localhost")]
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate), options)
    with channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=LIMIT_S)
        except grpc.FutureTimeoutError:
            return
        for call in CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=LIMIT_S)
            except grpc.RpcError as error:
                if error.code() not in (
                    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
                    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):  # fmt: skip
                    yield f"grpc {call}", f"{error.code()} {error.details()}"[:120]
            else:
                yield f"grpc {call}", "OK"


def ask_port(address: tuple[str, int]) -> list[list[Any]]:
    host, port = address
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    found = [*ask_http("http", host, port), *ask_http("https", host, port)]
    found += ask_grpc(f"{host}:{port}", None)
    with contextlib.suppress(OSError, ValueError):
        certificate = ssl.get_server_certificate((host, port), timeout=LIMIT_S)
        found += ask_grpc(f"{host}:{port}", certificate.encode())
    return [[f"{host}:{port}", *one] for one in found]


def ask_socket(path: str) -> list[list[Any]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT_S)
        try:
            client.connect(path)
        except OSError:
            return []
    return [[path, *one] for one in ask_grpc(f"unix:{path}", None)]


def main() -> None:
    ports, paths = json.loads(sys.argv[1])
    ask_port(("127.0.0.1", 9))  # imports what the clients need, while it can be read
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with ThreadPoolExecutor(16) as pool:
        found = [*pool.map(ask_port, map(tuple, ports)), *pool.map(ask_socket, paths)]
    print(json.dumps([one for part in found for one in part]))  # noqa: T201 - for `answered`


if __name__ == "__main__":
    main()
