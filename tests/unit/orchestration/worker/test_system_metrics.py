"""System metrics of a node, with and without GPUs."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from orchestration.worker import system_metrics

GIB = 2**30


def test_a_node_without_a_gpu_reports_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real samples of this machine."""
    monkeypatch.setattr(system_metrics, "EVERY_S", 0.2)
    samples: list[dict[str, float]] = []
    has_two = threading.Event()

    def report(values: dict[str, float]) -> None:
        samples.append(values)
        if len(samples) == 2:
            has_two.set()

    before = set(threading.enumerate())
    done = system_metrics.start_sampling(report)
    [thread] = set(threading.enumerate()) - before
    assert has_two.wait(20)
    done.set()
    for values in samples[:2]:
        assert 0 <= values["cpu_utilization_percentage"] <= 100
        assert 0 < values["system_memory_usage_percentage"] <= 100
        assert values["network_receive_mb_per_second"] >= 0
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's replies on a node whose first GPU is lost and whose third is a MIG slice, which
    has no utilization. (The library is the real one; no GPU is needed.)"""

    def not_for_slices(value: Any) -> Any:
        def reply(gpu: int) -> Any:
            if gpu == 2:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value

        return reply

    def handle(number: int) -> int:
        if number == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return number

    replies = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetUtilizationRates": not_for_slices(SimpleNamespace(gpu=97, memory=40)),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=20 * GIB, total=80 * GIB),
        "nvmlDeviceGetPowerUsage": not_for_slices(650_500),
    }
    for name, reply in replies.items():
        assert hasattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, reply)


def test_a_value_that_a_gpu_lacks_costs_no_other(three_gpus: None) -> None:
    counters = (time.monotonic(), {"network_receive": 0, "network_transmit": 0})
    metrics = system_metrics.read_system_metrics(counters, counters)
    assert {name: value for name, value in metrics.items() if name.startswith("gpu_")} == {
        "gpu_1_utilization_percentage": 97.0,
        "gpu_1_memory_usage_percentage": 25.0,
        "gpu_1_power_usage_watts": 650.5,
        "gpu_2_memory_usage_percentage": 25.0,
    }
    assert "cpu_utilization_percentage" in metrics
