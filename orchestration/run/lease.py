"""Which driver a run belongs to: the newest that has said so, in the run's own storage.

Whoever resumes a run takes it over. A driver that somebody thought dead, or that was cut off and
is back, sees it within seconds: its ranks save and leave, and it leaves the run to the other one.
Where both have room at once, on two clusters, the steps of these seconds are computed, and told,
twice; they are the same.
"""

import datetime
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass

from datasets.errors import DataError, StoreError
from datasets.storage.store import Store
from orchestration.errors import LeaseLost

CLAIM_FILE = "driver.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a driver says of itself; `mark` tells it from every other. since: UTC."""

    host: str
    pid: int
    since: str
    mark: str


def make_claim() -> Claim:
    """This process's."""
    return Claim(
        host=socket.gethostname(),
        pid=os.getpid(),
        since=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
        mark=secrets.token_hex(8),
    )


def save_claim(store: Store, run_url: str, mine: Claim) -> None:
    """Makes the run this driver's from now on. Raises StoreError."""
    store.write(f"{run_url}/{CLAIM_FILE}", json.dumps(asdict(mine)).encode())


def check_claim(store: Store, run_url: str, mine: Claim) -> None:
    """Raises TakenOver where the run is known to be another driver's by now."""
    try:
        said = json.loads(store.read(f"{run_url}/{CLAIM_FILE}"))
        mark = said["mark"]
    except (DataError, StoreError, ValueError, KeyError, TypeError):  # away, or nobody's
        return
    if mark != mine.mark:
        raise LeaseLost(
            f"{run_url}: got another driver, process {said.get('pid')} on {said.get('host')}, "
            f"which goes on with the run since {said.get('since')}; a run has one. Watch that one, "
            "or take the run back with `rayception resume`."
        )
