"""A run's attempts: what each did, what its end cost, and how much of the time was useful. Pure.

Kept as `timeline.json` in the run's storage, so that every driver of the run continues it.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from datasets.errors import DataError
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store

logger = logging.getLogger(__name__)

TIMELINE_FILE = "timeline.json"
ATTEMPTS_TAG = "rayception.attempts"
UNKNOWN = "its driver ended"  # the cause, if no driver was left to record it


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One worker group. Times are Unix seconds; steps are finished ones."""

    began: float
    ended: float  # if it is alive, or its driver died: when it was last seen
    ranks: int
    from_step: int
    to_step: int
    trained_s: float  # of steps, without startup, evaluations and checkpoints
    ended_by: str  # "" while it is alive
    # Seconds by phase (phases.py): its driver's startup, if it was the driver's first attempt; the
    # worker group's startup; evaluations.
    phases: dict[str, float] = field(default_factory=dict)
    devices: str = ""  # kinds of device of its ranks; "" if it never trained


def save_attempts(store: Store, run_url: str, attempts: Sequence[Attempt]) -> None:
    """Raises StoreError."""
    values = {"attempts": [asdict(attempt) for attempt in attempts]}
    store.write(f"{run_url}/{TIMELINE_FILE}", encode_json(values, indent=1))


def load_attempts(store: Store, run_url: str) -> list[Attempt]:
    """Empty for a new run, and if the file is damaged: a run does not end for that. Raises
    StoreError."""
    url = f"{run_url}/{TIMELINE_FILE}"
    try:
        values = decode_json(store.read(url))
        attempts = values["attempts"] if isinstance(values, dict) else values  # earlier versions
        return [Attempt(**attempt) for attempt in attempts]
    except DataError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: got %s; the file is damaged. It begins anew", url, error)
        return []


def useful_steps(attempts: Sequence[Attempt]) -> list[int]:
    """Of each attempt: its steps that the next attempt did not repeat."""
    next_starts = [attempt.from_step for attempt in attempts[1:]]
    next_starts += [attempt.to_step for attempt in attempts[-1:]]
    return [
        max(0, min(attempt.to_step, next_start) - attempt.from_step)
        for attempt, next_start in zip(attempts, next_starts, strict=True)
    ]


def goodput(attempts: Sequence[Attempt]) -> float:
    """The share of wall time, since the first attempt began, that went into useful steps. The time
    between a driver's death and a resume counts too."""
    if not attempts:
        return 0.0
    useful_s = sum(
        attempt.trained_s * useful / max(1, attempt.to_step - attempt.from_step)
        for attempt, useful in zip(attempts, useful_steps(attempts), strict=True)
    )
    wall_s = attempts[-1].ended - attempts[0].began
    return min(1.0, useful_s / wall_s) if wall_s > 0 else 0.0


def rank_hours(attempts: Sequence[Attempt]) -> float:
    """Hours that ranks were held; GPU hours, if the job has GPUs. An attempt in which the clock
    went back counts none."""
    held_s = sum(a.ranks * max(0.0, a.ended - a.began) for a in attempts)
    return held_s / 3600


def interruptions(attempts: Sequence[Attempt]) -> list[tuple[str, float, int]]:
    """Of every attempt but the last: (what ended it, seconds until the next began, steps that the
    next repeated)."""
    return [
        (
            attempt.ended_by or UNKNOWN,
            max(0.0, following.began - attempt.ended),
            max(0, attempt.to_step - following.from_step),
        )
        for attempt, following in itertools.pairwise(attempts)
    ]


def device_history(attempts: Sequence[Attempt]) -> str:
    """On which kinds of device a run was trained, in turn. Each kind rounds differently: from a
    change on, a run is equal to an undisturbed one up to rounding only. Empty if nothing is known.
    """
    parts: list[str] = []
    last = ""
    for attempt, steps in zip(attempts, useful_steps(attempts), strict=True):
        if steps > 0 and (kind := attempt.devices or "unknown") != last:
            step = f"from step {attempt.from_step + 1:,} on, equal up to rounding from there"
            parts.append(f"{kind} {step}" if last else kind)
            last = kind
    return "" if parts == ["unknown"] else "; ".join(parts)


def lifetime_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """MLflow tags that summarize the attempts."""
    faults = [
        f"{cause}: {seconds:.0f} s, {steps} steps again"
        for cause, seconds, steps in interruptions(attempts)
    ]
    return {
        ATTEMPTS_TAG: str(len(attempts)),
        "rayception.world_sizes": " ".join(str(attempt.ranks) for attempt in attempts),
        "rayception.devices": device_history(attempts),
        "rayception.goodput": f"{goodput(attempts):.3f}",
        "rayception.faults": "; ".join(faults)[:4000],
    }
