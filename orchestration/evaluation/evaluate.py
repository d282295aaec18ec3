"""Scoring one checkpoint, or an ensemble of several, on the workers of the job's cluster.

The split is cut into chunks; one actor per rank scores the next open chunk. If an actor dies,
another one scores its chunk again. Actors return predictions per image, sorted into the order of
the split here, so the result does not depend on which actor made them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from datasets.images.augment import count_views
from datasets.loading.loader import EvalLoader
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store, StoreConfig
from inception.precision import autocast_for, to_device_format
from inception.predictions import (
    Predictions,
    average_probabilities,
    make_predictions,
    merge_predictions,
)
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError, TrainingError
from orchestration.evaluation.trained import WEIGHTS, TrainedNetwork, load_trained
from orchestration.job.job import Job

CHUNK_BATCHES = 4  # few, so that actors finish together; enough to read ahead
START_LIMIT_S = 300.0
CHUNK_LIMIT_S = 3600.0  # for 144 crops on a slow CPU
Scored = tuple[dict[str, Predictions], int]  # by kind of weights; the number of damaged samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The configuration of every scorer, without secrets. urls: of the checkpoints. kinds: of
    WEIGHTS; each is scored as an ensemble of all checkpoints."""

    urls: tuple[str, ...]
    kinds: tuple[str, ...]
    job: Job
    crops: int
    num_chunks: int
    store: StoreConfig


class Scorer:
    """An actor that holds the networks on one rank."""

    def load(self, request: Request) -> None:
        """Reads the checkpoints. To be called first. (If __init__ raised, Ray would report that the
        actor died.)"""
        self.request = request
        self.store = Store(request.store)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = request.job.data
        self.manifest = load_manifest(self.store, data.val, verify=data.verify)
        self.networks: dict[str, list[torch.nn.Module]] = {kind: [] for kind in request.kinds}
        for url in request.urls:
            trained = load_trained(self.store, url)
            for kind in request.kinds:
                network = trained.build(kind)
                to_device_format(network, self.device)
                self.networks[kind].append(network)

    def score(self, chunk: int) -> Scored:
        request, job = self.request, self.request.job
        views = count_views(request.crops)
        batches: dict[str, list[Predictions]] = {kind: [] for kind in request.kinds}
        with EvalLoader(
            self.store,
            self.manifest,
            rank=chunk,
            world_size=request.num_chunks,
            batch_size=_batch_size(job, request.crops),
            input_size=job.model.input_size,
            crop=job.data.eval_crop,
            crops=request.crops,
            threads=job.cluster.cpus_per_worker,
            is_skipping=job.data.max_damaged > 0,
        ) as loader:
            for batch in loader:
                for kind, networks in self.networks.items():
                    probabilities = average_probabilities(
                        networks,
                        batch.images,
                        views=views,
                        is_mirrored=request.crops > 1,
                        chunk=job.data.micro_batch_size,
                        autocast=autocast_for(self.device, job.model.precision),
                    )
                    predictions = make_predictions(
                        probabilities, batch.targets, batch.weights, batch.samples, batch.keys
                    )
                    batches[kind].append(predictions)
            return _merge(batches), loader.damages.total


def score(request: Request, on_progress: Callable[[int, int], object]) -> Scored:
    """Scores the split on the connected cluster, with one scorer per rank of the job, or as many as
    it has capacity for. on_progress: called with the scored chunks and all of them, at first and
    after each chunk. Raises a scorer's error; ServiceError if none started or all died.
    """
    on_progress(0, request.num_chunks)
    actors = _start_scorers(request)
    calls: dict[Any, tuple[Any, int | None]] = {  # by result: (actor, its chunk; None: load)
        actor.load.remote(request): (actor, None) for actor in actors
    }
    waiting = deque(range(request.num_chunks))
    results: list[Scored] = []
    idle: list[Any] = []
    has_started = False
    try:
        while len(results) < request.num_chunks:
            while idle and waiting:
                actor, next_chunk = idle.pop(), waiting.popleft()
                calls[actor.score.remote(next_chunk)] = (actor, next_chunk)
            limit_s = CHUNK_LIMIT_S if has_started else START_LIMIT_S
            done = ray.wait(list(calls), num_returns=1, timeout=limit_s)[0] if calls else []
            if not done:
                problem = f"no answer within {limit_s:.0f} s" if calls else "all workers lost"
                raise ServiceError(
                    f"cluster.accelerators: got {request.job.cluster.accelerators}, {problem} and "
                    f"{len(results)} of {request.num_chunks} chunks scored; a worker must start "
                    "and live. Ask for what the cluster has, see Ray's logs, and run it again."
                )
            actor, chunk = calls.pop(done[0])
            try:
                result = ray.get(done[0])
            except RayTaskError as error:
                raise _to_error(error) from error
            except RayError:  # the actor or its node died
                if chunk is not None:
                    waiting.appendleft(chunk)
                continue
            has_started = True
            idle.append(actor)
            if chunk is not None:
                results.append(result)
                on_progress(len(results), request.num_chunks)
    finally:
        for actor in actors:
            ray.kill(actor)
    parts = {kind: [predictions[kind] for predictions, _ in results] for kind in request.kinds}
    return _merge(parts), sum(damaged for _, damaged in results)


def _merge(parts: dict[str, list[Predictions]]) -> dict[str, Predictions]:
    return {kind: merge_predictions(predictions) for kind, predictions in parts.items()}


def _start_scorers(request: Request) -> list[Any]:
    cluster, accelerator = request.job.cluster, request.job.cluster.accelerator
    options: dict[str, Any] = {"num_cpus": cluster.cpus_per_worker}
    if accelerator.is_gpu:
        options |= {"num_gpus": 1, "accelerator_type": accelerator.type}
    count = min(cluster.max_nodes * accelerator.count, request.num_chunks)
    scorer = ray.remote(Scorer).options(**options)
    return [scorer.remote() for _ in range(count)]


def _to_error(error: RayTaskError) -> Exception:
    """A scorer's own error if it is an expected one, else one line about it."""
    if isinstance(error.cause, EXPECTED_ERRORS):
        return error.cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return TrainingError(
        f"evaluation: got {lines[-1].strip()[:300] if lines else type(error).__name__}; a worker "
        "could not score. See Ray's logs, or --debug."
    )


def check_members(members: Sequence[TrainedNetwork], classes: tuple[str, ...]) -> None:
    """Raises JobError if the members are no ensemble, or have other classes than the split."""
    first = members[0]
    for other in members[1:]:
        if other.classes != first.classes:
            raise JobError(
                f"{other.url}: got {len(other.classes)} classes; an ensemble's members name the "
                f"same {len(first.classes)}, in the same order. Leave it out."
            )
        if other.job.model.input_size != first.job.model.input_size:
            raise JobError(
                f"{other.url}: got input_size {other.job.model.input_size}; an ensemble's members "
                f"take the same images, {first.job.model.input_size} px. Leave it out."
            )
    if classes != first.classes:
        raise JobError(
            f"data.val: got a split of {len(classes)} classes ({', '.join(classes[:3])}, ...); "
            f"the network names {len(first.classes)} ({', '.join(first.classes[:3])}, ...). "
            "Evaluate it on a split with its own classes."
        )


def choose_kinds(weights: str, members: Sequence[TrainedNetwork]) -> tuple[str, ...]:
    """The kinds of weights to score; `both`: those that every member has. Raises JobError."""
    if weights == "both":
        return tuple(kind for kind in WEIGHTS if all(kind in m.weights for m in members))
    for member in members:
        member.check_kind(weights)
    return (weights,)


def count_chunks(job: Job, crops: int, num_samples: int) -> int:
    return max(1, ceil(num_samples / (_batch_size(job, crops) * CHUNK_BATCHES)))


def _batch_size(job: Job, crops: int) -> int:
    """Images per decoded batch; two if each has many crops."""
    return job.data.micro_batch_size if crops == 1 else 2
