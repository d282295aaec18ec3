"""What MLflow has not received yet, stored in the run's folder: `RUN/outbox/`.

Points are stored per writer (rank 0, the driver) in objects whose names sort by time; files under
their path in MLflow; `end.json` holds the final status of a run that has ended. An object is
deleted only after it was sent, so a kill may send it twice, which is harmless: MLflow stores a
repeated point once, as its time is part of it, and overwrites a file.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from datasets.errors import DataError
from datasets.storage.store import Store

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox of one run. Every method raises StoreError if storage is unreachable."""

    store: Store
    run_url: str

    def add_points(self, writer: str, points: list[Point]) -> str:
        """-> the URL of the new object, which sorts after the writer's others even if the clock
        went back, or is another machine's: points of earlier steps would be dropped."""
        newest = max(self._urls(f"points/{writer}/"), default="0").rpartition("/")[2]
        number = max(time.time_ns(), int(newest.removesuffix(".json")) + 1)
        url = f"{self.run_url}/outbox/points/{writer}/{number:020d}.json"
        self.store.write(url, json.dumps(points).encode())
        return url

    def points(self, writer: str | None = None) -> dict[str, list[Point]]:
        """A writer's points by the URL of their object, oldest first; None: every writer's, one
        after another."""
        return {
            url: [(key, value, at, step) for key, value, at, step in json.loads(content)]
            for url, content in self._read_all(f"points/{writer}/" if writer else "points/")
        }

    def add_file(self, path: str, content: bytes) -> None:
        self.store.write(f"{self.run_url}/outbox/files/{path}", content)

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """(path in MLflow, URL, content) of each file; one is read at a time."""
        prefix = f"{self.run_url}/outbox/files/"
        for url, content in self._read_all("files/"):
            yield url.removeprefix(prefix), url, content

    def set_end(self, status: str, tags: dict[str, str]) -> None:
        """The run has ended: FINISHED, FAILED or KILLED."""
        content = json.dumps({"status": status, "tags": tags}).encode()
        self.store.write(f"{self.run_url}/outbox/end.json", content)

    def end(self) -> tuple[str, dict[str, str]] | None:
        """(status, tags) of a run whose end MLflow has not received, or None."""
        try:
            end = json.loads(self.store.read(f"{self.run_url}/outbox/end.json"))
        except DataError:
            return None
        return end["status"], end["tags"]

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
