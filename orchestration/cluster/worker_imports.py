"""Imports that a worker process makes at its start, before it is told its rank.

Importing torch and Ray Train takes 4 s. Ray calls `start` as the process setup hook of workers;
most imports then go on in a thread, while the process becomes an actor.
"""

import os
import threading
from importlib import import_module

KIND_VARIABLE = "RAYCEPTION_RANK"
CPUS_VARIABLE = "RAYCEPTION_RANK_CPUS"
CPU, GPU = "cpu", "gpu"
LIMIT_S = 600.0  # for a slow file system

_thread: threading.Thread | None = None


def start() -> None:
    """Imports Ray Train, then the rest in a thread. An import that fails there fails again, and is
    reported, where its module is needed."""
    global _thread
    # Ray sets this for an actor with that many CPUs, but later: torch reads it once, when it is
    # imported. Ranks with a thread for every core of the node are four times slower.
    os.environ.setdefault("OMP_NUM_THREADS", os.environ[CPUS_VARIABLE])
    # Not in the thread: Ray unpickles an actor's class from within that package, and importing part
    # of a package does not wait for a thread that is importing the package.
    import_module("ray.train")
    modules = ["torch", "orchestration.worker.train_loop"]
    if os.environ.get(KIND_VARIABLE) == CPU:
        # The first optimizer imports it, in 1.3 s. Not for a GPU rank: the process has no GPU yet,
        # and CUDA keeps the devices that it first saw.
        modules.append("torch._dynamo")
    _thread = threading.Thread(target=_import_all, args=(modules,), name="imports", daemon=True)
    _thread.start()


def wait() -> None:
    """Waits for the thread: must precede every other import of torch."""
    if _thread is not None:
        _thread.join(LIMIT_S)


def _import_all(names: list[str]) -> None:
    for name in names:
        import_module(name)
