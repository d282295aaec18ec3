"""What MLflow has not taken yet, kept in the run's own storage: below `RUN/outbox/`.

Points lie in one folder a writer (rank 0, the driver), in objects whose names sort by time; files
under the path that they will have in MLflow; `end.json` says that the run has ended and how. What
was taken is deleted after it was, so a kill at any moment leaves things twice at worst, and both
points (their time is part of them) and files count once when they come twice.
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
    """One run's. Every method raises StoreError where the storage refuses."""

    store: Store
    run_url: str

    def keep_points(self, who: str, points: list[Point]) -> str:
        """Writes points of one writer; -> the object's URL."""
        url = f"{self.run_url}/outbox/points/{who}/{time.time_ns():020d}.json"
        self.store.write(url, json.dumps(points).encode())
        return url

    def points(self, who: str) -> dict[str, list[Point]]:
        """A writer's points by the URL of their object, oldest first; without those that somebody
        else sends, and drops, meanwhile."""
        found: dict[str, list[Point]] = {}
        for url in self._urls(f"points/{who}/"):
            content = self._read(url)
            if content is None:
                continue
            rows: list[list[object]] = json.loads(content)
            found[url] = [
                (str(key), float(str(value)), int(str(at)), int(str(step)))
                for key, value, at, step in rows
            ]
        return found

    def writers(self) -> list[str]:
        """Who has points here."""
        prefix = f"{self.run_url}/outbox/points/"
        return sorted({url.removeprefix(prefix).split("/")[0] for url in self._urls("points/")})

    def keep_file(self, path: str, content: bytes) -> None:
        self.store.write(f"{self.run_url}/outbox/files/{path}", content)

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """(path that it is to have in MLflow, URL, content) of each file, one after the other."""
        prefix = f"{self.run_url}/outbox/files/"
        for url in self._urls("files/"):
            content = self._read(url)
            if content is not None:
                yield url.removeprefix(prefix), url, content

    def keep_end(self, status: str, tags: dict[str, str]) -> None:
        """The run has ended: FINISHED, FAILED or KILLED."""
        content = json.dumps({"status": status, "tags": tags}).encode()
        self.store.write(f"{self.run_url}/outbox/end.json", content)

    def end(self) -> tuple[str, dict[str, str]] | None:
        """(status, tags) of a run that ended without MLflow's knowing, or None."""
        content = self._read(f"{self.run_url}/outbox/end.json")
        if content is None:
            return None
        said = json.loads(content)
        return said["status"], said["tags"]

    def forget_end(self) -> None:
        self.store.delete(f"{self.run_url}/outbox/end.json")

    def drop(self, urls: list[str]) -> None:
        """What MLflow has taken goes."""
        for url in urls:
            self.store.delete(url)

    def _read(self, url: str) -> bytes | None:
        """None where there is no such object, or no more."""
        try:
            return self.store.read(url)
        except DataError:
            return None

    def _urls(self, folder: str) -> list[str]:
        return sorted(one.url for one in self.store.list(f"{self.run_url}/outbox/{folder}"))
