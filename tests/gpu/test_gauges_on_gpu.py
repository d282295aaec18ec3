"""What a node's GPUs say of themselves, asked of the real driver. Skipped where there is none."""

import time

import pytest
import torch

from orchestration.worker.system_metrics import read_system_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_memory_that_is_taken_is_seen() -> None:
    moment = (time.monotonic(), {"network_receive": 0, "network_transmit": 0})
    before = read_system_metrics(moment, moment)["gpu_0_memory_usage_percentage"]
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.empty(total // 10, dtype=torch.uint8, device="cuda:0")
    after = read_system_metrics(moment, moment)["gpu_0_memory_usage_percentage"]
    assert held.numel() == total // 10
    assert after - before > 5
