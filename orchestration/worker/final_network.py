"""A run's final network as a graph that needs no rayception: a file beside its checkpoints.

Rank 0 writes it once the last step is evaluated: it has torch's compiler imported and the weights
at hand. Where it died before that, whoever wants the file makes it of the checkpoint.
"""

import io
import logging
from typing import TYPE_CHECKING

from datasets.errors import DataError
from datasets.storage.store import Store
from orchestration.job.job import Job
from orchestration.job.plan import build_job_architecture
from orchestration.run.checkpoint import Checkpoint, Summary, load_checkpoint

if TYPE_CHECKING:
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)


def network_url(run_url: str, step: int) -> str:
    return f"{run_url}/network-{step:09d}.pt2"


def write_network(job: Job, store: Store, run_url: str, state: Checkpoint) -> None:
    """Writes the graph with the averaged weights where an average is kept, else the last ones.
    Raises StoreError."""
    store.write(network_url(run_url, state.step), encode_network(job, state))


def read_network(job: Job, store: Store, run_url: str, end: Summary) -> bytes:
    """The file that `write_network` wrote, else one made of the checkpoint. Raises StoreError,
    TrainingError."""
    try:
        return store.read(network_url(run_url, end.step))
    except DataError:
        logger.info("%s has no network yet; it is made of its checkpoint", run_url)
        return encode_network(job, load_checkpoint(store, end.url))


def encode_network(job: Job, state: Checkpoint) -> bytes:
    """A torch.export file; on the CPU, whatever trained it."""
    from inception.graph import evaluation_graph, put_weights
    from inception.network import build_network

    graph = evaluation_graph(build_network(build_job_architecture(job)).eval())
    put_weights(graph, state.averaged or state.model)
    return encode_graph(graph)


def encode_graph(graph: "ExportedProgram") -> bytes:
    import torch

    graph.example_inputs = None  # the only part of the file that would be a pickle
    buffer = io.BytesIO()
    torch.export.save(graph, buffer)
    return buffer.getvalue()
