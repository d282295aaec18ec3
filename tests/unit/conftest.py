"""Unit tests run beside one another: one computing thread each, here and in what they start."""

import os
from collections.abc import Iterator

import pytest
import torch

# Threads that wait for one another on cores that others use take minutes for seconds of work.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_thread_in_processes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        yield
