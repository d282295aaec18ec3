"""The accelerator that a job gets on a cluster, and what is reported if it gets none or waits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster import capacity
from orchestration.cluster.capacity import Capacity, Node, Nodes, wait_for_capacity
from orchestration.errors import ServiceError
from orchestration.job.job import Job
from orchestration.job.load import load_job

ROOT = Path(__file__).resolve().parents[4]
IMAGENET = load_job(ROOT / "jobs" / "imagenet-v3.yaml")  # 4 nodes of H100:8, 14 CPUs a rank


def node(kind: str = "H100", *, cpus: float = 112, gpus: float = 8, free: float = 1.0) -> Node:
    total = {"CPU": cpus, "GPU": gpus} | ({f"accelerator_type:{kind}": 1.0} if kind else {})
    return Node(total=total, free={k: v * free for k, v in total.items()}, labels={})


SPOT = replace(node(), labels={"ray.io/market-type": "spot"})
PLAIN = node("", gpus=0)


def on(job: Job, **cluster: object) -> Job:
    return replace(job, cluster=replace(job.cluster, **cluster))  # type: ignore[arg-type]


def choose(job: Job, live: list[Node]) -> Capacity:
    return capacity.choose_accelerator(job, Nodes(live=live, addable=[]))


def test_cluster_that_fits() -> None:
    found = choose(IMAGENET, [node()] * 4)
    assert (found.now, found.total) == (32, 32)
    quickstart = load_job(ROOT / "jobs" / "quickstart.yaml")
    assert choose(quickstart, [node("", cpus=2, gpus=0)]).now == 2


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([], "room for 0 on 0 nodes"),
        ([node()] * 3, "room for 24 on 3 nodes"),
        ([node("A100")] * 4, "(A100)"),
        ([node(cpus=56)] * 4, "room for 16"),
        ([PLAIN] * 4, "no GPU type"),
    ],
)
def test_a_cluster_that_can_never_fit_is_an_error(nodes: list[Node], reason: str) -> None:
    with pytest.raises(ServiceError) as caught:
        choose(IMAGENET, nodes)
    message = str(caught.value)
    assert message.startswith("cluster.accelerators: got H100:8 on 4 nodes")
    assert reason in message


def test_alternatives_are_tried_in_order() -> None:
    job = on(IMAGENET, accelerators=["H200:8", "H100:8", "A100:8"])
    both = [node("A100")] * 4 + [node()] * 4
    assert choose(job, both).accelerator.type == "H100"
    busy = [node("A100")] * 4 + [node(free=0.5)] * 4  # the free type is preferred to waiting
    assert choose(job, busy).accelerator.type == "A100"
    chosen, _ = wait_for_capacity(job, lambda: Nodes(live=both, addable=[]), log=print, limit_s=0)
    assert chosen.cluster.accelerators == "H100:8"


def test_spot_needs_the_label() -> None:
    job = on(IMAGENET, use_spot=True)
    with pytest.raises(ServiceError, match="4 spot nodes"):
        choose(job, [node()] * 4)
    assert choose(job, [SPOT] * 4).now == 32


def test_elastic_takes_what_there_is_between_its_bounds() -> None:
    job = on(IMAGENET, num_nodes={"min": 2, "max": 4})
    assert choose(job, [node()] * 3).now == 24
    assert choose(job, [node()] * 9).now == 32
    with pytest.raises(ServiceError, match="got H100:8 on 2 nodes"):
        choose(job, [node()])


def test_an_autoscaler_that_can_make_room_is_asked_and_not_waited_for() -> None:
    lines: list[str] = []
    small = Nodes(live=[PLAIN], addable=[node()] * 4)
    wait_for_capacity(IMAGENET, lambda: small, log=lines.append, limit_s=0)
    assert "asking the autoscaler" in lines[0]
    with pytest.raises(ServiceError, match="its autoscaler could bring it to 24"):
        wait_for_capacity(
            IMAGENET, lambda: Nodes(live=[PLAIN], addable=[node()] * 3), log=print, limit_s=0
        )


def test_room_that_others_have_is_waited_for_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "FIRST_PAUSE_S", 0.001)

    def freed() -> Callable[[], Nodes]:
        views = [Nodes(live=[node(free=share)] * 4, addable=[]) for share in (0.0, 0.5, 1.0)]
        return lambda: views.pop(0)

    # The resources of a dead group, free again a moment later, are not worth a line.
    wait_for_capacity(IMAGENET, freed(), log=pytest.fail, limit_s=60)
    monkeypatch.setattr(capacity, "QUIET_S", 0.0)
    lines: list[str] = []
    _, found = wait_for_capacity(IMAGENET, freed(), log=lines.append, limit_s=60)
    assert found.now == 32
    assert lines == [
        "waiting for room: 32 ranks of H100 wanted, room for 0 now and for 32 when other work is "
        "done"
    ]
    full = Nodes(live=[node(free=0.25)] * 4, addable=[])
    with pytest.raises(ServiceError, match="32 ranks of H100 wanted, room for 8"):
        wait_for_capacity(IMAGENET, lambda: full, log=print, limit_s=0)
