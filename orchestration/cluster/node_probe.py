"""Checks that run on every node, each as a Ray task there: nodes differ from the machine that
submits in their network, credentials and packages."""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.errors import DataError
from datasets.shards.manifest import load_manifest
from datasets.shards.split_url import index_url
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.versions import version_differences, versions
from orchestration.errors import EXPECTED_ERRORS
from orchestration.job.job import Job
from orchestration.manifests.nodes import HEALTH_CHECKS

# Includes setting up the runtime environment and starting a process: 15 s were too short for two
# submissions at once on four machines with two cores.
PROBE_LIMIT_S = 60.0
HTTP_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeChecks:
    """What each node checks. secrets: the names of environment variables, without their values."""

    store: StoreConfig
    splits: tuple[str, ...]
    tracking_uri: str
    secrets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """problems: message by check. health: the settings of Ray's health checks in the node's
    environment. crc32c: google-crc32c's implementation, `c` or `python`."""

    address: str
    is_head: bool
    versions: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
    crc32c: str = "c"


def probe_nodes(checks: NodeChecks, nodes: list[dict[str, Any]]) -> list[NodeReport]:
    """Runs the checks on all nodes at once. nodes: as of `ray.nodes()`.

    A node that fails or does not answer within 60 s has that as its problem.
    """
    pending = {}
    for node in nodes:
        empty = NodeReport(
            address=node["NodeManagerAddress"],
            is_head="node:__internal_head__" in node["Resources"],
        )
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node)(_check_node)
        pending[task.remote(checks, empty)] = empty
    ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=PROBE_LIMIT_S)
    reports = []
    for ref, empty in pending.items():
        failure = f"no answer within {PROBE_LIMIT_S:.0f} s"
        if ref in ready:
            try:
                reports.append(ray.get(ref))
                continue
            except ray.exceptions.RayError as error:
                failure = (str(error).strip().splitlines() or ["an error"])[-1][:200]
        problem = (
            f"node {empty.address}: got {failure}; each node must run rayception's checks. See its "
            "load and Ray's logs, or take it out of the cluster."
        )
        reports.append(replace(empty, problems={"nodes": problem}))
        ray.cancel(ref, force=True)
    return reports


def _check_node(checks: NodeChecks, report: NodeReport) -> NodeReport:
    """Runs on the node; -> its report, completed."""
    problems = {}
    node = f"node {report.address}"
    missing = [name for name in checks.secrets if not os.environ.get(name)]
    if missing:
        problems["secrets"] = (
            f"cluster.secrets: got no {', '.join(missing)} on {node}; each name must be set in the "
            "environment of every node. Set it where Ray is started there."
        )
    try:
        store = Store(checks.store)
        for split in checks.splits:
            manifest = load_manifest(store, split, verify=False)
            store.read_range(manifest.shard_url(0), 0, min(512, manifest.shards[0].size_bytes))
    except EXPECTED_ERRORS as error:
        problems["data"] = f"{error} (Seen on {node}.)"
    if not _is_reachable(checks.tracking_uri):
        problems["tracking"] = (
            f"tracking.uri: got no answer from {checks.tracking_uri} on {node}; rank 0 may run "
            "there, and sends metrics. Start the server, or name one that every node reaches."
        )
    return replace(
        report,
        versions=versions(),
        problems=problems,
        health={name: os.environ[name] for name in HEALTH_CHECKS if name in os.environ},
        crc32c=google_crc32c.implementation,
    )


def _is_reachable(url: str) -> bool:
    """Any answer counts, except a server error."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HTTP_LIMIT_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def existing_splits(job: Job, store: Store) -> tuple[str, ...]:
    """The job's splits, without those that have yet to be packed from `data.source`."""
    urls = (job.data.train, job.data.val)
    if job.data.source is None:
        return urls
    try:
        return tuple(url for url in urls if store.exists(index_url(url)))
    except DataError:
        return urls


def compare_versions(
    reports: list[NodeReport], submitter: dict[str, str]
) -> tuple[list[str], list[str]]:
    """(problems: nodes whose versions differ from those here, notes: the submitter's differ)."""
    here = versions()
    problems = [
        f"node {report.address}: got {', '.join(differences)} on the node of the driver; what one "
        "pickles the other reads. Give both the same image or requirements."
        for report in reports
        if (differences := version_differences(report.versions, here))
    ]
    if not (differences := version_differences(submitter, here)):
        return problems, []
    return problems, [f"the submitting machine has {', '.join(differences)} on the cluster"]


def health_check_note(reports: list[NodeReport]) -> str | None:
    """The settings that the head lacks to detect dead nodes in seconds, and their price."""
    for report in reports:
        if report.is_head and any(
            int(report.health.get(name, 10**6)) > int(limit)
            for name, limit in HEALTH_CHECKS.items()
        ):
            settings = " ".join(f"{name}={value}" for name, value in HEALTH_CHECKS.items())
            return (
                "with Ray's own settings, a cut link or dead node is noticed after about a minute; "
                f"start the head with {settings} for seconds (price: a check a second and node, "
                "and a node that hangs for 5 s counts as dead)"
            )
    return None


def checksum_note(reports: list[NodeReport]) -> str | None:
    """The nodes whose samples' checksums are computed in Python, some hundred times slower."""
    slow = [report.address for report in reports if report.crc32c != "c"]
    if not slow:
        return None
    return (
        f"node {', '.join(slow)}: got google-crc32c without its C library; samples' checksums are "
        "slow there. Install its wheel (pip install --force-reinstall --only-binary :all: "
        "google-crc32c), or set data.verify=false"
    )
