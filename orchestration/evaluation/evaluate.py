"""Evaluating one or several checkpoints over the job's workers.

The split is cut into chunks; an actor for each rank of the job's cluster scores whichever chunk is
next. A worker that dies gives its chunk to another one. Predictions come back image by image and
are judged here, so their result does not depend on who made them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from datasets.images.augment import views_of
from datasets.loading.loader import EvalLoader
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store, StoreConfig
from inception.precision import autocast_for, to_device_format
from inception.predictions import Predictions, average_probabilities, gather, predict
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError, TrainingError
from orchestration.evaluation.trained import WEIGHTS, TrainedNetwork, load_trained
from orchestration.job.job import Job
from orchestration.job.load import from_dict, to_dict

CHUNK_BATCHES = 4  # of one actor's turn: short enough for an even end, long enough to read ahead
START_LIMIT_S = 300.0
TURN_LIMIT_S = 3600.0  # 144 crops of a chunk on a slow CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What every scorer is told; plain values, no secret among them. kinds: of WEIGHTS, each scored
    as an ensemble of all urls."""

    urls: tuple[str, ...]
    kinds: tuple[str, ...]
    job: dict[str, Any]
    crops: int
    num_chunks: int
    store: StoreConfig


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk's predictions by kind of weights, and how many of its samples were damaged."""

    predictions: dict[str, Predictions]
    damaged: int


class Scorer:
    """One rank's networks; an actor."""

    def load(self, request: Request) -> None:
        """Reads the checkpoints; the first turn. (What __init__ raises, Ray tells as a death.)"""
        self.request = request
        self.job = from_dict(request.job)
        self.store = Store(request.store)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.manifest = load_manifest(self.store, self.job.data.val)
        self.networks: dict[str, list[torch.nn.Module]] = {kind: [] for kind in request.kinds}
        for url in request.urls:
            trained = load_trained(self.store, url)
            for kind in request.kinds:
                network = trained.build(kind)
                to_device_format(network, self.device)
                self.networks[kind].append(network)

    def score(self, chunk: int) -> Part:
        """The predictions of one chunk."""
        request, data = self.request, self.job.data
        views = views_of(request.crops)
        parts: dict[str, list[Predictions]] = {kind: [] for kind in request.kinds}
        with EvalLoader(
            self.store,
            self.manifest,
            rank=chunk,
            world_size=request.num_chunks,
            batch_size=_batch_size(self.job, request.crops),
            input_size=self.job.model.input_size,
            crop=data.eval_crop,
            crops=request.crops,
            threads=self.job.cluster.cpus_per_worker,
            is_skipping=data.max_damaged > 0,
        ) as loader:
            for batch in loader:
                for kind, networks in self.networks.items():
                    probabilities = average_probabilities(
                        networks,
                        batch.images,
                        views=views,
                        is_mirrored=request.crops > 1,
                        chunk=data.micro_batch_size,
                        autocast=autocast_for(self.device, self.job.model.precision),
                    )
                    parts[kind].append(
                        predict(
                            probabilities, batch.targets, batch.weights, batch.samples, batch.keys
                        )
                    )
            damaged = loader.damages.total
        return Part({kind: gather(made) for kind, made in parts.items()}, damaged)


def score(
    request: Request, job: Job, on_chunk: Callable[[], object]
) -> tuple[dict[str, Predictions], int]:
    """Every sample's prediction by kind of weights, and how many samples were damaged.

    Runs on the connected cluster with a scorer for each rank of the job, or for as many as find
    room. Raises what a scorer found wrong; ServiceError where none started or all were lost.
    """
    actors = _make_actors(request, job)
    turns: dict[Any, tuple[Any, int | None]] = {
        actor.load.remote(request): (actor, None) for actor in actors
    }
    waiting = deque(range(request.num_chunks))
    parts: dict[int, Part] = {}
    idle: list[Any] = []
    has_begun = False
    try:
        while len(parts) < request.num_chunks:
            while idle and waiting:
                actor, number = idle.pop(), waiting.popleft()
                turns[actor.score.remote(number)] = (actor, number)
            limit_s = TURN_LIMIT_S if has_begun else START_LIMIT_S
            done, _ = ray.wait(list(turns), num_returns=1, timeout=limit_s) if turns else ([], [])
            if not done:
                raise _stuck(job, len(parts), request.num_chunks, bool(turns), limit_s)
            actor, chunk = turns.pop(done[0])
            try:
                part = ray.get(done[0])
            except RayTaskError as error:
                raise _told(error) from error
            except RayError:  # its worker or node died: another one takes the chunk
                if chunk is not None:
                    waiting.appendleft(chunk)
                continue
            has_begun = True
            idle.append(actor)
            if chunk is not None:
                parts[chunk] = part
                on_chunk()
    finally:
        for actor in actors:
            ray.kill(actor)
    made = [parts[number] for number in sorted(parts)]
    whole = {kind: gather([part.predictions[kind] for part in made]) for kind in request.kinds}
    return whole, sum(part.damaged for part in made)


def _make_actors(request: Request, job: Job) -> list[Any]:
    cluster, accelerator = job.cluster, job.cluster.accelerator
    options: dict[str, Any] = {"num_cpus": cluster.cpus_per_worker}
    if accelerator.is_gpu:
        options |= {"num_gpus": 1, "accelerator_type": accelerator.type}
    make = ray.remote(Scorer).options(**options)
    return [
        make.remote() for _ in range(min(cluster.max_nodes * accelerator.count, request.num_chunks))
    ]


def _stuck(job: Job, done: int, chunks: int, is_waiting: bool, limit_s: float) -> ServiceError:
    what = f"no answer within {limit_s:.0f} s" if is_waiting else "all workers lost"
    return ServiceError(
        f"cluster.accelerators: got {job.cluster.accelerators}, {what} and {done} of {chunks} "
        "chunks scored; a worker must start and live. Ask for what the cluster has, see Ray's "
        "logs, and run it again."
    )


def _told(error: RayTaskError) -> Exception:
    """A worker's own words where they are ours."""
    cause = error.cause
    if isinstance(cause, EXPECTED_ERRORS):
        return cause
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return TrainingError(
        f"evaluation: got {lines[-1].strip()[:300] if lines else type(error).__name__}; a worker "
        "could not score. See Ray's logs, or --debug."
    )


def check_members(found: Sequence[TrainedNetwork], classes: tuple[str, ...]) -> None:
    """Raises JobError where checkpoints cannot be averaged, or name other classes than the split
    has."""
    first = found[0]
    for other in found:
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


def kinds_of(wanted: str, found: Sequence[TrainedNetwork]) -> tuple[str, ...]:
    """The kinds of weights to score: `both` is what every member has."""
    if wanted == "both":
        return tuple(kind for kind in WEIGHTS if all(kind in one.weights for one in found))
    for one in found:
        one.check_kind(wanted)
    return (wanted,)


def build_request(
    found: Sequence[TrainedNetwork],
    kinds: tuple[str, ...],
    job: Job,
    *,
    crops: int,
    num_samples: int,
    store: StoreConfig,
) -> Request:
    """The scorers' orders."""
    batch_size = _batch_size(job, crops)
    return Request(
        urls=tuple(one.url for one in found),
        kinds=kinds,
        job=to_dict(job),
        crops=crops,
        num_chunks=max(1, -(-num_samples // (batch_size * CHUNK_BATCHES))),
        store=store,
    )


def _batch_size(job: Job, crops: int) -> int:
    """Images decoded together; with many crops each is many."""
    return job.data.micro_batch_size if crops == 1 else 2
