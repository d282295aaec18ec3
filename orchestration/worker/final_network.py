"""A run's final network as a torch.export graph that needs no rayception: a file beside its
checkpoints.

Rank 0 writes it after the last evaluation: it has torch's compiler imported and the weights in
memory. If it died before that, the file is made from the checkpoint when it is read.
"""

import io
import logging
from typing import TYPE_CHECKING

from datasets.errors import DataError
from datasets.storage.checksums import seal, unseal
from datasets.storage.store import Store
from orchestration.job.job import Job
from orchestration.run.checkpoint import Checkpoint, CheckpointSummary, load_checkpoint

if TYPE_CHECKING:
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)


def network_url(run_url: str, step: int) -> str:
    return f"{run_url}/network-{step:09d}.pt2"


def write_network(job: Job, store: Store, run_url: str, state: Checkpoint) -> None:
    """Only logs an error. The last checkpoint is written, so there is no reason to train again: the
    driver makes the file from that checkpoint, and reports an error that persists."""
    try:
        store.write(network_url(run_url, state.step), seal(encode_network(job, state)))
    except Exception as error:
        logger.warning("the final network is left to the driver: %s", error)


def read_network(job: Job, store: Store, run_url: str, last: CheckpointSummary) -> bytes:
    """The file that `write_network` wrote or, if it is missing or damaged, one made from the last
    checkpoint. Raises StoreError, TrainingError."""
    url = network_url(run_url, last.step)
    try:
        return unseal(store.read(url), or_plain=True)
    except DataError:
        logger.info("%s has no network file yet; it is made from its checkpoint", run_url)
    except ValueError as error:
        logger.warning(
            "%s: got %s; the file is damaged. It is made from its checkpoint", url, error
        )
    return encode_network(job, load_checkpoint(store, last.url))


def encode_network(job: Job, state: Checkpoint) -> bytes:
    """A torch.export file of the averaged weights, or of the raw weights if no average is kept; for
    the CPU, whatever trained it."""
    from inception.network import build_network, evaluation_graph

    network = build_network(job.model.architecture()).eval()
    network.load_state_dict(state.averaged or state.model)
    return encode_graph(evaluation_graph(network))


def encode_graph(graph: "ExportedProgram") -> bytes:
    import torch

    graph.example_inputs = None  # the only part of the file that would be a pickle
    buffer = io.BytesIO()
    torch.export.save(graph, buffer)
    return buffer.getvalue()
