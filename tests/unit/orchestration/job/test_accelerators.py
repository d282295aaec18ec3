"""Accelerator types in all common spellings."""

import pytest
from ray.util.accelerators import accelerators as ray_names

from orchestration.errors import JobError
from orchestration.job.accelerators import GPU_TYPES, UNSUPPORTED, Accelerator, parse_accelerator


def test_every_name_that_ray_knows_is_taken_or_refused_with_a_reason() -> None:
    known = {
        value
        for name, value in vars(ray_names).items()
        if isinstance(value, str) and not name.startswith("_")
    }
    assert known == set(GPU_TYPES) | set(UNSUPPORTED)
    for name in GPU_TYPES:
        assert parse_accelerator(f"{name}:2") == Accelerator(type=name, count=2)
    for name in UNSUPPORTED:
        with pytest.raises(JobError, match="drives NVIDIA and AMD GPUs"):
            parse_accelerator(f"{name}:2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H100:8", Accelerator(type="H100", count=8)),
        ("h100:8", Accelerator(type="H100", count=8)),
        ("A100-80G", Accelerator(type="A100-80G", count=1)),
        ("H100:", Accelerator(type="H100", count=1)),
        (" CPU:2 ", Accelerator(type="CPU", count=2)),
        ("a100-80gb:8", Accelerator(type="A100-80G", count=8)),
        ("NVIDIA A100-SXM4-40GB:8", Accelerator(type="A100-40G", count=8)),
        ("nvidia_h100_80gb_hbm3:8", Accelerator(type="H100", count=8)),
        ("Tesla T4", Accelerator(type="T4", count=1)),
        ("nvidia-l4:2", Accelerator(type="L4", count=2)),
        ("mi300x:8", Accelerator(type="AMD-Instinct-MI300X-OAM", count=8)),
        ("rtx pro 6000", Accelerator(type="RTX-PRO-6000", count=1)),
    ],
)
def test_parse(text: str, expected: Accelerator) -> None:
    assert parse_accelerator(text) == expected


@pytest.mark.parametrize("text", ["", ":8", "H100:x", "H100:-1", "H100:0", "H100:8:8"])
def test_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"cluster\.accelerators: got"):
        parse_accelerator(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A100-1g.5gb:7", "a MIG slice"),
        ("mig-H100:2", "a MIG slice"),
        ("H100:0.5", "hang in NCCL"),
        ("H1000:2", "Did you mean H100?"),
        ("A100-80BG:2", "Did you mean A100-80G"),
        ("TPU-V4:4", "Ray knows TPU-V4, but"),
    ],
)
def test_what_ddp_cannot_use_is_refused_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_accelerator(text)
    assert expected in str(caught.value)
