"""A run in attempts: what each did, what its end cost, how much of the time was of use. Pure.

It lies in the run's storage (timeline.json), so that it goes on where the run does.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from datasets.errors import DataError
from datasets.storage.store import Store

TIMELINE_FILE = "timeline.json"
ATTEMPTS_TAG = "rayception.attempts"
UNKNOWN = "its driver ended"  # what is left when nobody was there to say more


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One worker group. Times are Unix seconds; steps are finished ones."""

    began: float
    ended: float  # while it lives, and if its driver died: when it was last seen
    ranks: int
    from_step: int
    to_step: int
    trained_s: float  # of steps, without start, evaluations and checkpoints
    ended_by: str  # "" while it lives
    # Seconds by phase (phases.py): its driver's start, where it was the driver's first; the worker
    # group's; evaluations.
    phases: dict[str, float] = field(default_factory=dict)


def to_json(attempts: Sequence[Attempt]) -> bytes:
    return json.dumps([asdict(one) for one in attempts], indent=1).encode()


def from_json(content: bytes) -> list[Attempt]:
    return [Attempt(**one) for one in json.loads(content)]


def load_attempts(store: Store, run_url: str) -> list[Attempt]:
    """Those of a run in storage; none of a new one. Raises StoreError."""
    try:
        return from_json(store.read(f"{run_url}/{TIMELINE_FILE}"))
    except (DataError, ValueError, TypeError):  # none yet; or half a file, which costs a picture
        return []


def kept_steps(attempts: Sequence[Attempt]) -> list[int]:
    """How many of each attempt's steps the next one did not work again."""
    following = [one.from_step for one in attempts[1:]] + [attempts[-1].to_step] if attempts else []
    return [
        max(0, min(one.to_step, begin) - one.from_step)
        for one, begin in zip(attempts, following, strict=True)
    ]


def goodput(attempts: Sequence[Attempt]) -> float:
    """The share of the wall time, from the first attempt's begin on, in which steps were made that
    count: 1 is a run that does nothing else. Between a driver's death and a resume the clock runs
    too."""
    if not attempts:
        return 0.0
    useful_s = sum(
        one.trained_s * kept / max(1, one.to_step - one.from_step)
        for one, kept in zip(attempts, kept_steps(attempts), strict=True)
    )
    wall_s = attempts[-1].ended - attempts[0].began
    return min(1.0, useful_s / wall_s) if wall_s > 0 else 0.0


def rank_hours(attempts: Sequence[Attempt]) -> float:
    """Hours that ranks (a GPU each, where the job has GPUs) were held."""
    return sum(one.ranks * (one.ended - one.began) for one in attempts) / 3600


def costs(attempts: Sequence[Attempt]) -> list[tuple[str, float, int]]:
    """(what ended an attempt, seconds until the next began, steps that were worked again), of every
    attempt but the last."""
    return [
        (one.ended_by or UNKNOWN, max(0.0, after.began - one.ended), max(0, one.to_step - begin))
        for one, after, begin in zip(
            attempts, attempts[1:], [other.from_step for other in attempts[1:]], strict=False
        )
    ]


def lifetime_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """A run's life in MLflow tags."""
    found = costs(attempts)
    return {
        ATTEMPTS_TAG: str(len(attempts)),
        "rayception.world_sizes": " ".join(str(one.ranks) for one in attempts),
        "rayception.goodput": f"{goodput(attempts):.3f}",
        "rayception.faults": "; ".join(
            f"{what}: {seconds:.0f} s, {steps} steps again" for what, seconds, steps in found
        )[:4000],
    }
