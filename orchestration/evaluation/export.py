"""Exports a trained network as a file for other programs: safetensors, torch.export or ONNX.

The network takes float32 (N, 3, S, S), RGB in -1..1, with any N, and returns logits; the graphs of
the latter two have no side heads. A file's metadata contain the job and the classes.
"""

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from inception.network import InceptionNet, evaluation_graph
from orchestration.errors import JobError
from orchestration.evaluation.trained import METADATA, TrainedNetwork, export_metadata

FORMATS = (".safetensors", ".pt2", ".onnx")


def export_network(trained: TrainedNetwork, kind: str, to: Path) -> None:
    """Writes the network with this kind of weights, in the format of the file's suffix (FORMATS);
    the file appears only when it is complete. Raises JobError."""
    metadata = json.dumps(export_metadata(trained))
    network = trained.build(kind)
    try:
        handle, name = tempfile.mkstemp(suffix=to.suffix, prefix=f".{to.stem}-", dir=to.parent)
        os.close(handle)
    except OSError as error:
        raise JobError(
            f"--to: got {str(to)!r}, which cannot be written ({error.strerror}); its folder must "
            "exist and be writable. Name another file."
        ) from error
    part = Path(name)
    try:
        if to.suffix == ".safetensors":
            state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            save_file(state, part, metadata={METADATA: metadata})
        elif to.suffix == ".pt2":
            torch.export.save(
                evaluation_graph(network), part, extra_files={f"{METADATA}.json": metadata}
            )
        else:
            _write_onnx(network, part, metadata)
        part.chmod(0o644)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def _write_onnx(network: InceptionNet, to: Path, metadata: str) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            evaluation_graph(network), dynamo=True, input_names=["images"], output_names=["logits"],
            verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props[METADATA] = metadata
    program.save(to)
