"""Which driver owns a run: the newest that has acquired its lease, kept in the run's storage.

Resuming a run takes it over. A driver that was believed dead, or that was cut off and comes back,
notices within seconds: its ranks checkpoint and stop, and it leaves the run to the new driver. If
both have capacity at once, on two clusters, the steps of those seconds are computed and logged
twice; they are the same steps.
"""

import datetime
import json
import os
import secrets
import socket
from dataclasses import dataclass, field

from datasets.errors import DataError, StoreError
from datasets.storage.store import Store
from orchestration.errors import LeaseLost

LEASE_FILE = "driver.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """This process's lease on the run in `run_url`; `mark` distinguishes it from every other."""

    store: Store
    run_url: str
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def acquire(self) -> None:
        """Makes this process the run's driver. Raises StoreError."""
        values = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
            "mark": self.mark,
        }
        self.store.write(f"{self.run_url}/{LEASE_FILE}", json.dumps(values).encode())

    def check(self) -> None:
        """Raises LeaseLost if another driver is known to have acquired the run."""
        try:
            owner = json.loads(self.store.read(f"{self.run_url}/{LEASE_FILE}"))
            mark = owner["mark"]
        except (DataError, StoreError, ValueError, KeyError, TypeError):  # unreachable, or no lease
            return
        if mark != self.mark:
            raise LeaseLost(
                f"{self.run_url}: got another driver, process {owner.get('pid')} on "
                f"{owner.get('host')}, which has driven the run since {owner.get('since')}; a "
                "run has one. Watch that one, or take the run back with `rayception resume`."
            )
