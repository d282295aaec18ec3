"""What MLflow has not received yet, stored in the run's folder: `RUN/outbox/`.

Points are stored per writer (rank 0, the driver) in objects whose names sort by time; files under
their path in MLflow; `end.json` holds the final status of a run that has ended. An object is
deleted only after it was sent, so a kill may send it twice, which is harmless: MLflow stores a
repeated point once, as its time is part of it, and overwrites a file.

Every object carries a CRC-32C. One that has changed since is named in the log and stays where it
is: neither a run nor `sync` ends for it. Objects of earlier versions carry none, and are sent too.
"""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from datasets.errors import DataError
from datasets.storage.checksums import decode_json, encode_json, seal, unseal
from datasets.storage.store import Store

logger = logging.getLogger(__name__)

OBJECT_NAME = re.compile(r"\d+\.json")  # a person may leave a copy of one beside it
Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox of one run. Every method raises StoreError if storage is unreachable."""

    store: Store
    run_url: str

    def add_points(self, writer: str, points: list[Point]) -> str:
        """-> the URL of the new object, which sorts after the writer's others even if the clock
        went back, or is another machine's: points of earlier steps would be dropped."""
        names = (url.rpartition("/")[2] for url in self._urls(f"points/{writer}/"))
        newest = max((int(name[:-5]) for name in names if OBJECT_NAME.fullmatch(name)), default=0)
        number = max(time.time_ns(), newest + 1)
        url = f"{self.run_url}/outbox/points/{writer}/{number:020d}.json"
        self.store.write(url, encode_json({"points": points}))
        return url

    def points(self, writer: str | None = None) -> dict[str, list[Point]]:
        """A writer's points by the URL of their object, oldest first; None: every writer's, one
        after another."""
        points: dict[str, list[Point]] = {}
        for url, content in self._read_all(f"points/{writer}/" if writer else "points/"):
            try:
                values = decode_json(content)
                rows = values["points"] if isinstance(values, dict) else values
                points[url] = [(key, value, at, step) for key, value, at, step in rows]
            except (ValueError, KeyError, TypeError) as error:
                _report(url, str(error))
        return points

    def add_file(self, path: str, content: bytes) -> None:
        self.store.write(f"{self.run_url}/outbox/sealed-files/{path}", seal(content))

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """(path in MLflow, URL, content) of each file; one is read at a time."""
        prefix = f"{self.run_url}/outbox/"
        for url, content in self._read_all("files/"):  # of an earlier version
            yield url.removeprefix(f"{prefix}files/"), url, content
        for url, stored in self._read_all("sealed-files/"):
            try:
                content = unseal(stored)
            except ValueError as error:
                _report(url, str(error))
                continue
            yield url.removeprefix(f"{prefix}sealed-files/"), url, content

    def set_end(self, status: str, tags: dict[str, str]) -> None:
        """The run has ended: FINISHED, FAILED or KILLED."""
        content = encode_json({"status": status, "tags": tags})
        self.store.write(f"{self.run_url}/outbox/end.json", content)

    def end(self) -> tuple[str, dict[str, str]] | None:
        """(status, tags) of a run whose end MLflow has not received, or None."""
        url = f"{self.run_url}/outbox/end.json"
        try:
            end = decode_json(self.store.read(url))
            return end["status"], end["tags"]
        except DataError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            _report(url, str(error))
            return None

    def clear_end(self) -> None:
        self.store.delete(f"{self.run_url}/outbox/end.json")

    def delete(self, urls: list[str]) -> None:
        """Deletes objects that were sent."""
        for url in urls:
            self.store.delete(url)

    def _read_all(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """(URL, content) of each object, without those that another process sends and deletes
        meanwhile."""
        for url in self._urls(folder):
            try:
                content = self.store.read(url)
            except DataError:
                continue
            yield url, content

    def _urls(self, folder: str) -> list[str]:
        return sorted(entry.url for entry in self.store.list(f"{self.run_url}/outbox/{folder}"))


def _report(url: str, what: str) -> None:
    logger.warning(
        "%s: got %s; the object was damaged in storage, and MLflow does not get it, nor once later "
        "ones were sent. Restore it from a copy before the run or `sync` goes on, or delete it",
        *(url, what),
    )
