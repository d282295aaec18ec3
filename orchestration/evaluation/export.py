"""A trained network as a file that others read: safetensors, torch.export or ONNX.

All take float32 (N, 3, S, S), RGB in -1..1, of any N, and give logits; side heads are left out of
the graphs. What the file is (job, classes) stands in its metadata.
"""

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from inception.graph import evaluation_graph
from inception.network import InceptionNet
from orchestration.errors import JobError
from orchestration.evaluation.trained import METADATA, TrainedNetwork, describe

FORMATS = (".safetensors", ".pt2", ".onnx")


def write(trained: TrainedNetwork, kind: str, to: Path) -> None:
    """Writes the weights of this kind to a file of FORMATS, by its suffix; a half-written one never
    has its name. Raises JobError."""
    network = trained.build(kind)
    said = json.dumps(describe(trained))
    try:
        handle, name = tempfile.mkstemp(suffix=to.suffix, prefix=f".{to.stem}-", dir=to.parent)
        os.close(handle)
    except OSError as error:
        raise JobError(
            f"--to: got {str(to)!r}, which cannot be written ({error.strerror}); a file in a "
            "folder that is there. Name another one."
        ) from error
    part = Path(name)
    try:
        if to.suffix == ".safetensors":
            state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            save_file(state, part, metadata={METADATA: said})
        elif to.suffix == ".pt2":
            torch.export.save(
                evaluation_graph(network), part, extra_files={f"{METADATA}.json": said}
            )
        else:
            _write_onnx(network, part, said)
        part.chmod(0o644)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def _write_onnx(network: InceptionNet, to: Path, said: str) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            evaluation_graph(network), dynamo=True, input_names=["images"], output_names=["logits"],
            verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props[METADATA] = said
    program.save(to)
