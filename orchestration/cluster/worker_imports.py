"""What a rank's process runs at its start, before it is told that it is one.

torch and Ray Train take a process 4 s to import. Ray calls `begin` as a worker's process setup
hook; most of it goes on in a thread, beside what the process does to become an actor.
"""

import os
import threading
from importlib import import_module

KIND_VARIABLE = "RAYCEPTION_RANK"
CPUS_VARIABLE = "RAYCEPTION_RANK_CPUS"
CPU, GPU = "cpu", "gpu"
LIMIT_S = 600.0  # of a file system that is slow


_thread: threading.Thread | None = None


def begin() -> None:
    """Imports Ray Train, then goes on in a thread; what fails there is said where it is needed."""
    global _thread
    # As Ray sets it for an actor with so many CPUs, but torch reads it once, at its import; ranks
    # with a thread for every core of the node are four times slower.
    os.environ.setdefault("OMP_NUM_THREADS", os.environ[CPUS_VARIABLE])
    # Before this process serves: Ray unpickles an actor's class from within that package, and where
    # a thread is still importing a package, Python does not wait before it imports a part of it.
    import_module("ray.train")
    modules = ["torch", "orchestration.worker.train_loop"]
    if os.environ.get(KIND_VARIABLE) == CPU:
        # The first optimizer imports it, for 1.3 s. Not where a GPU is to come: the process has
        # none yet, and CUDA keeps what it saw first.
        modules.append("torch._dynamo")
    _thread = threading.Thread(target=_import_all, args=(modules,), name="imports", daemon=True)
    _thread.start()


def wait() -> None:
    """Until the thread is done: called before anything of torch is imported elsewhere."""
    if _thread is not None:
        _thread.join(LIMIT_S)


def _import_all(names: list[str]) -> None:
    for name in names:
        import_module(name)
