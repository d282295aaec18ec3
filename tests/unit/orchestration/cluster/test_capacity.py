"""Which accelerator a job gets on a cluster, and what is said where it gets none or must wait."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.cluster.capacity import Node, Nodes, choose_accelerator, wait_for_capacity
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


def test_cluster_that_fits() -> None:
    capacity = choose_accelerator(IMAGENET, Nodes(live=[node()] * 4, addable=[]))
    assert (capacity.now, capacity.ever) == (32, 32)
    quickstart = load_job(ROOT / "jobs" / "quickstart.yaml")
    assert (
        choose_accelerator(quickstart, Nodes(live=[node("", cpus=2, gpus=0)], addable=[])).now == 2
    )


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "room for 0 on 0 nodes"),
        ([node()] * 3, "room for 24 on 3 nodes"),
        ([node("A100")] * 4, "(A100)"),
        ([node(cpus=56)] * 4, "room for 16"),
        ([PLAIN] * 4, "no GPU type"),
    ],
)
def test_cluster_that_can_never_fit_is_said(nodes: list[Node], words: str) -> None:
    with pytest.raises(ServiceError) as caught:
        choose_accelerator(IMAGENET, Nodes(live=nodes, addable=[]))
    message = str(caught.value)
    assert message.startswith("cluster.accelerators: got H100:8 on 4 nodes")
    assert words in message


def test_alternatives_are_tried_in_order() -> None:
    job = on(IMAGENET, accelerators=["H200:8", "H100:8", "A100:8"])
    both = [node("A100")] * 4 + [node()] * 4
    assert choose_accelerator(job, Nodes(live=both, addable=[])).accelerator.type == "H100"
    busy = [node("A100")] * 4 + [node(free=0.5)] * 4  # what is free is taken, and not waited for
    assert choose_accelerator(job, Nodes(live=busy, addable=[])).accelerator.type == "A100"
    chosen, _ = wait_for_capacity(job, lambda: Nodes(live=both, addable=[]), log=print, limit_s=0)
    assert chosen.cluster.accelerators == "H100:8"


def test_spot_needs_the_label() -> None:
    job = on(IMAGENET, use_spot=True)
    with pytest.raises(ServiceError, match="4 spot nodes"):
        choose_accelerator(job, Nodes(live=[node()] * 4, addable=[]))
    assert choose_accelerator(job, Nodes(live=[SPOT] * 4, addable=[])).now == 32


def test_elastic_takes_what_there_is_between_its_bounds() -> None:
    job = on(IMAGENET, num_nodes={"min": 2, "max": 4})
    assert choose_accelerator(job, Nodes(live=[node()] * 3, addable=[])).now == 24
    assert choose_accelerator(job, Nodes(live=[node()] * 9, addable=[])).now == 32
    with pytest.raises(ServiceError, match="got H100:8 on 2 nodes"):
        choose_accelerator(job, Nodes(live=[node()], addable=[]))


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
    monkeypatch.setattr("orchestration.cluster.capacity.QUIET_S", 0.0)
    views = [Nodes(live=[node(free=f)] * 4, addable=[]) for f in (0.0, 0.5, 1.0)]
    lines: list[str] = []
    _, capacity = wait_for_capacity(
        IMAGENET, lambda: views.pop(0), log=lines.append, limit_s=60, pause_s=0.0
    )
    assert capacity.now == 32
    assert lines == [
        "waiting for room: 32 ranks of H100 wanted, room for 0 now and for 32 when other work is "
        "done"
    ]
    monkeypatch.undo()  # a dead group's room, free again a moment later: nobody needs to know
    views = [Nodes(live=[node(free=f)] * 4, addable=[]) for f in (0.0, 0.5, 1.0)]
    wait_for_capacity(IMAGENET, lambda: views.pop(0), log=pytest.fail, limit_s=60, pause_s=0.01)
    full = Nodes(live=[node(free=0.25)] * 4, addable=[])
    with pytest.raises(ServiceError, match="32 ranks of H100 wanted, room for 8"):
        wait_for_capacity(IMAGENET, lambda: full, log=print, limit_s=0, pause_s=0.001)
