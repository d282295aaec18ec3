"""The driver's commands reach the ranks, however late the progress actor replies."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from orchestration.job.load import load_job
from orchestration.job.plan import make_plan
from orchestration.worker import train_loop
from orchestration.worker.progress_actor import Command, ProgressActor
from orchestration.worker.train_loop import TrainLoop

ROOT = Path(__file__).resolve().parents[4]
PLAN = make_plan(load_job(ROOT / "jobs" / "quickstart.yaml"), train_samples=1437, val_samples=360)
SYNCS = 12


class LateActor:
    """A progress actor whose replies arrive some syncs after the one that its report follows."""

    def __init__(self, delays: tuple[int, ...]) -> None:
        """delays: by report; 0: there at the next sync. Later reports have none."""
        self.actor = ProgressActor()
        self.delays = iter(delays)
        self.sync = 0
        self.report = SimpleNamespace(remote=self._report)

    def _report(self, progress: Any) -> tuple[int, Command]:
        """(the first sync at which the reply is there, the reply)."""
        return self.sync + 1 + next(self.delays, 0), self.actor.report(progress)

    def wait(
        self, replies: list[Any], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        """As ray.wait with a timeout of 0."""
        assert timeout == 0
        ready = [reply for reply in replies if reply[0] <= self.sync][:num_returns]
        return ready, [reply for reply in replies if reply not in ready]


def get(replies: Any) -> Any:
    """As ray.get."""
    return [reply for _, reply in replies] if isinstance(replies, list) else replies[1]


def commands_of_syncs(
    monkeypatch: pytest.MonkeyPatch, delays: tuple[int, ...], notice_s: float, request_at: int
) -> list[Command]:
    """What the ranks are told at each sync. A node's end is announced before sync `request_at`."""
    late = LateActor(delays)
    stub = SimpleNamespace(wait=late.wait, get=get, exceptions=ray.exceptions)
    monkeypatch.setattr(train_loop, "ray", stub)
    loop = TrainLoop.__new__(TrainLoop)
    vars(loop).update(
        rank=0, world_size=1, start_step=0, plan=PLAN, replies=[], checkpoint_writer=None,
        devices=["CPU"],
        state=SimpleNamespace(step=1, metrics={}),
        config=SimpleNamespace(progress_actor=late, attempt=1),
    )  # fmt: skip
    names = ("train/loss", "train/images_per_second", "train/data_wait_fraction")
    synced = dict.fromkeys(names, 1.0)
    metrics: Any = SimpleNamespace(
        sync=lambda step, command: (synced, command), images_per_second=1.0, trained_s=1.0
    )
    commands = []
    for sync in range(SYNCS):
        late.sync = sync
        if sync == request_at:
            late.actor.request_stop(time.time() + notice_s)
        commands.append(loop._sync_metrics(metrics))
    return commands


def test_a_checkpoint_asked_for_is_made_once_however_late_the_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for delays in itertools.product((0, 1, 3), repeat=5):
        with monkeypatch.context() as patch:
            commands = commands_of_syncs(patch, delays, 3600.0, request_at=2)
        assert commands.count(Command.CHECKPOINT) == 1, delays
        assert Command.STOP not in commands, delays


def test_ranks_stop_also_if_every_reply_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = commands_of_syncs(monkeypatch, (2,) * SYNCS, 0.0, request_at=2)
    assert Command.STOP in commands
