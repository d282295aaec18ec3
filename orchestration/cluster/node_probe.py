"""What a node of the cluster can do for a job, found out on that node: a task on each.

A laptop that reads the data says nothing of the nodes: they have other networks, credentials and
packages.
"""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.errors import DataError
from datasets.shards.manifest import index_url, load_manifest
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.versions import differing, versions
from orchestration.errors import EXPECTED_ERRORS
from orchestration.job.job import Job
from orchestration.manifests.nodes import HEALTH_CHECKS

# A busy node sets up its runtime environment and starts a process first: 15 s were not enough for
# two submissions at once on four machines with two cores.
ANSWER_LIMIT_S = 60.0
HTTP_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeQuestions:
    """What a node is asked; no secret's value among it."""

    store: StoreConfig
    splits: tuple[str, ...]
    tracking_uri: str
    secrets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeAnswer:
    """What a node said: its versions, what is wrong with it in our words, the head's settings."""

    address: str
    is_head: bool
    versions: dict[str, str]
    problems: dict[str, str]  # check -> line
    health: dict[str, str]
    stop_signal: str | None


def ask_nodes(questions: NodeQuestions, nodes: list[dict[str, Any]]) -> list[NodeAnswer]:
    """All at once; one that does not answer within 60 s says that. nodes: as `ray.nodes()`."""
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        is_head = "node:__internal_head__" in node["Resources"]
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_answer)
        blank = NodeAnswer(
            address=node["NodeManagerAddress"], is_head=is_head, versions={}, problems={},
            health={}, stop_signal=None,
        )  # fmt: skip
        asked[task.remote(questions, blank)] = blank
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_LIMIT_S)
    answers = []
    for ref, blank in asked.items():
        what = f"no answer within {ANSWER_LIMIT_S:.0f} s"
        if ref in ready:
            try:
                answers.append(ray.get(ref))
                continue
            except ray.exceptions.RayError as error:
                what = (str(error).strip().splitlines() or ["an error"])[-1][:200]
        line = (
            f"node {blank.address}: got {what}; each node must run a task of ours. See its load "
            "and Ray's logs, or take it out of the cluster."
        )
        answers.append(replace(blank, problems={"nodes": line}))
        ray.cancel(ref, force=True)
    return answers


def _answer(questions: NodeQuestions, blank: NodeAnswer) -> NodeAnswer:
    """Runs on the node."""
    problems = {}
    where = f"node {blank.address}"
    missing = [name for name in questions.secrets if not os.environ.get(name)]
    if missing:
        problems["secrets"] = (
            f"cluster.secrets: got no {', '.join(missing)} on {where}; each name stands in the "
            "environment of every node. Set it where Ray is started there."
        )
    try:
        store = Store(questions.store)
        for split in questions.splits:
            manifest = load_manifest(store, split)
            shard = manifest.shard_url(0)
            store.read_range(shard, 0, min(512, manifest.shards[0].size_bytes))
    except EXPECTED_ERRORS as error:
        problems["data"] = f"{error} (Seen on {where}.)"
    if not _answers(questions.tracking_uri):
        problems["tracking"] = (
            f"tracking.uri: got no answer from {questions.tracking_uri} on {where}; rank 0 sends "
            "metrics from wherever it is. Start the server, or name one that every node reaches."
        )
    return replace(
        blank,
        versions=versions(),
        problems=problems,
        health={name: os.environ[name] for name in HEALTH_CHECKS if name in os.environ},
        stop_signal=os.environ.get("RAY_JOB_STOP_SIGNAL"),
    )


def _answers(url: str) -> bool:
    """Any word of the server is an answer, but that it is ill itself."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HTTP_LIMIT_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def splits_to_ask(job: Job, store: Store) -> tuple[str, ...]:
    """The splits that are there; one that `data.source` will pack is not yet."""
    urls = (job.data.train, job.data.val)
    if job.data.source is None:
        return urls
    try:
        return tuple(url for url in urls if store.exists(index_url(url)))
    except DataError:
        return urls


def differences(answers: list[NodeAnswer], laptop: dict[str, str]) -> tuple[list[str], list[str]]:
    """(what must not differ: a node's versions and the driver's; what may: the laptop's)."""
    here = versions()
    wrong = [
        f"node {one.address}: got {', '.join(found)} on the node of the driver; what one pickles "
        "the other reads. Give both the same image or requirements."
        for one in answers
        if one.versions and (found := differing(one.versions, here))
    ]
    other = differing(laptop, here)
    return wrong, [f"the laptop has {', '.join(other)} on the cluster"] if other else []


def slow_to_notice(answers: list[NodeAnswer]) -> str | None:
    """What the head was not started with, and what that costs."""
    for one in answers:
        if one.is_head and any(
            int(one.health.get(name, 10**6)) > int(value) for name, value in HEALTH_CHECKS.items()
        ):
            wanted = " ".join(f"{name}={value}" for name, value in HEALTH_CHECKS.items())
            return (
                "a cut link or dead node is noticed after about a minute by Ray's own settings; "
                f"start the head with {wanted} for seconds (price: a check a second and node, and "
                "a node that hangs for 5 s counts as dead)"
            )
    return None
