"""Weights of a file -> a network: strict, except for the heads of another number of classes."""

import io
import pickle
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from inception.errors import ModelError
from inception.network import InceptionNet

NAMED = 4  # names that an error lists
WRAPPERS = ("model", "state_dict")  # what training programs keep a state dict under


def read_weights(content: bytes, where: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one of torch.save (weights_only: nothing in it
    is run), there also under `model` or `state_dict`, as our checkpoints and others' have it.

    Raises ModelError for another kind of file.
    """
    try:
        if where.endswith(".safetensors"):
            return load(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(
            _no_weights(where, f"{len(content)} bytes that are cut or damaged")
        ) from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(
            _no_weights(where, f"{len(content)} bytes ({type(error).__name__})")
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(_no_weights(where, f"a {type(found).__name__} of other things"))
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def load_weights(network: InceptionNet, weights: Mapping[str, Tensor], where: str) -> list[str]:
    """Loads a state dict under the network's own names; -> the heads that keep their initial
    values.

    A classifier, of the network or of a side head, whose number of classes differs stays as it is,
    and so does a side head that the file has not; side heads that the network has not are left out.
    Raises ModelError for any other missing, unknown or misshapen name.
    """
    own = network.state_dict()
    sides = [side.name for side in network.architecture.side_heads]
    heads = [network.architecture.classifier]
    heads += [f"{side}.{layer}" for side in sides for layer in ("fc", "fc2")]
    chosen = {
        n: t for n, t in weights.items() if n in own or not n.startswith(("AuxLogits.", "aux"))
    }
    kept: set[str] = set()
    for head in heads:
        name = f"{head}.weight"
        if name in own and name in chosen:
            theirs, ours = chosen[name].shape, own[name].shape
            if theirs[0] != ours[0] and theirs[1:] == ours[1:]:
                kept.add(head)
    for side in sides:
        if not any(name.startswith(f"{side}.") for name in chosen):
            kept.add(side)
    expected = {name for name in own if not name.startswith(tuple(f"{head}." for head in kept))}
    found = {name for name in chosen if not name.startswith(tuple(f"{head}." for head in kept))}
    for what, names in (
        # Files older than batch norm's counter, which nothing here reads, have none.
        ("lacks", {n for n in expected - found if not n.endswith("num_batches_tracked")}),
        ("has unknown", found - expected),
        ("has in another shape", {n for n in expected & found if chosen[n].shape != own[n].shape}),
    ):
        if names:
            listed = ", ".join(sorted(names)[:NAMED])
            raise ModelError(
                f"model.init_from: got {where}, which {what} {len(names)} of the tensors of "
                f"{network.architecture.name} ({listed}{', ...' if len(names) > NAMED else ''}); "
                "the file must be of this network and width. Name another file, or set model.name "
                "and model.width to its own."
            )
    network.load_state_dict({n: chosen[n] for n in expected & found}, strict=False)
    return sorted(kept)


def _no_weights(where: str, what: str) -> str:
    return (
        f"model.init_from: got {where}, {what}; a .safetensors file or a state dict of torch.save. "
        "Name such a file."
    )
