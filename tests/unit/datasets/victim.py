"""A training loader to be killed: appends a line to a file for every finished step, and resumes
after the last one. A process of test_loader_kills.py.
"""

import hashlib
import os
import signal
from pathlib import Path

from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from tests.unit.datasets.loaders import order_of, train_loader


def lines_of(text: str) -> list[str]:
    """The finished steps: only whole lines count."""
    return text.split("\n")[:-1]


def started_file(file: Path) -> Path:
    """Exists from when a victim starts to read its data."""
    return file.with_suffix(".started")


def work(
    file: Path, url: str, last: int, world_size: int, threads: int, pause_at: int | None
) -> None:
    """pause_at: before this step it waits to be killed."""
    manifest = load_manifest(Store(), url)
    text = file.read_text() if file.exists() else ""
    step = len(lines_of(text))
    # A part of a line is a step that was not finished.
    file.write_text("".join(f"{line}\n" for line in lines_of(text)))
    loaders = [
        train_loader(
            Store(), manifest, order=order_of(manifest, seed=2), first_step=step, rank=rank,
            world_size=world_size, input_size=12, threads=threads,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    started_file(file).touch()
    with file.open("a") as log:
        for number, of_ranks in zip(range(step, last), zip(*loaders, strict=True), strict=False):
            if number == pause_at:
                signal.pause()
            batches = sorted((b for batches in of_ranks for b in batches), key=lambda b: b.index)
            digest = hashlib.sha256()
            for batch in batches:
                for part in (batch.samples, batch.images.contiguous(), batch.mirrored):
                    digest.update(part.numpy().tobytes())
            log.write(f"{number} {digest.hexdigest()}\n")
            log.flush()
            os.fsync(log.fileno())
    os._exit(0)
