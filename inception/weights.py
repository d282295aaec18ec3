"""Loads pretrained weights: strictly, except for heads with another number of classes."""

import io
import pickle
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from inception.errors import ModelError
from inception.network import InceptionNet

MAX_LISTED = 4  # tensor names in an error message
WRAPPERS = ("model", "state_dict")  # keys under which checkpoints hold a state dict
AUX_PREFIXES = ("AuxLogits.", "aux")


def read_weights(content: bytes, source: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch.save file, in the latter also under `model` or
    `state_dict`, as in our checkpoints and others'. With weights_only, no code in it is run.

    Raises ModelError for another kind of file.
    """
    try:
        if source.endswith(".safetensors"):
            return load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise _unreadable(source, f"{len(content)} bytes that are cut or damaged") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise _unreadable(source, f"{len(content)} bytes ({type(error).__name__})") from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise _unreadable(source, f"a {type(state).__name__} of other things")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_weights(network: InceptionNet, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Loads a state dict with the network's names; -> the heads that keep their initial weights:
    classifiers with another number of classes, and auxiliary heads missing from the file.

    Auxiliary heads that the network does not have are ignored. Raises ModelError for any other
    missing or unknown name, or another shape, and then loads nothing.
    """
    current = network.state_dict()
    weights = {
        name: tensor
        for name, tensor in weights.items()
        if name in current or not name.startswith(AUX_PREFIXES)
    }
    aux_heads = [head.name for head in network.architecture.aux_heads]
    skipped = {h for h in aux_heads if not any(name.startswith(f"{h}.") for name in weights)}
    classifiers = [network.architecture.classifier]
    classifiers += [f"{head}.{fc}" for head in aux_heads for fc in ("fc", "fc2")]
    for classifier in classifiers:
        name = f"{classifier}.weight"
        if name in current and name in weights:
            shape, new_shape = current[name].shape, weights[name].shape
            if shape[:1] != new_shape[:1] and shape[1:] == new_shape[1:]:
                skipped.add(classifier)
    prefixes = tuple(f"{head}." for head in skipped)
    expected = {name for name in current if not name.startswith(prefixes)}
    present = {name for name in weights if not name.startswith(prefixes)}
    misshapen = {n for n in expected & present if weights[n].shape != current[n].shape}
    # Older files lack batch norm's counter, which nothing here reads.
    missing = {name for name in expected - present if not name.endswith("num_batches_tracked")}
    for problem, names in (
        ("lacks", missing),
        ("has unknown", present - expected),
        ("has in another shape", misshapen),
    ):
        if names:
            listed = ", ".join(sorted(names)[:MAX_LISTED])
            raise ModelError(
                f"model.init_from: got {source}, which {problem} {len(names)} of the tensors of "
                f"{network.architecture.name} ({listed}{', ...' if len(names) > MAX_LISTED else ''}"
                "); the file must be of this network and width. Name another file, or set "
                "model.name and model.width to its own."
            )
    network.load_state_dict({name: weights[name] for name in expected & present}, strict=False)
    return sorted(skipped)


def _unreadable(source: str, content: str) -> ModelError:
    return ModelError(
        f"model.init_from: got {source}, {content}; a .safetensors file or a state dict of "
        "torch.save. Name such a file."
    )
