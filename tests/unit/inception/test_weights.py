"""Weight files load strictly, except for heads with another number of classes."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from inception.errors import ModelError
from inception.family import build_architecture
from inception.network import InceptionNet, build_network
from inception.weights import load_weights, read_weights


def network(
    name: str = "inception_v3", *, classes: int = 10, seed: int = 0, has_aux_heads: bool = True,
    width: float = 0.1,
) -> InceptionNet:  # fmt: skip
    return build_network(
        build_architecture(
            name, num_classes=classes, input_size=96, width=width, has_aux_heads=has_aux_heads
        ),
        seed=seed,
    )


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def assert_loaded(
    target: InceptionNet, source: dict[str, Tensor], except_for: tuple[str, ...] = ()
) -> None:
    for name, tensor in target.state_dict().items():
        if not name.startswith(except_for):
            assert torch.equal(tensor, source[name]), name


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "inception_v4"])
def test_every_form_of_file_loads(name: str) -> None:
    source = network(name, seed=1).state_dict()
    for content, url in (
        (save(source), "s3://b/w.safetensors"),
        (saved(source), "s3://b/w.pt"),
        (saved({"step": 3, "model": source}), "s3://b/state.pt"),
        (saved({"state_dict": {f"module.{n}": t for n, t in source.items()}}), "s3://b/w.pth"),
    ):
        target = network(name, seed=2)
        assert load_weights(target, read_weights(content, url), url) == []
        assert_loaded(target, source)


def test_heads_of_another_number_of_classes_begin_anew() -> None:
    source = network(classes=10, seed=1).state_dict()
    target, fresh = network(classes=4, seed=2), network(classes=4, seed=2).state_dict()
    assert load_weights(target, source, "w.pt") == ["AuxLogits.fc", "fc"]
    assert_loaded(target, source, except_for=("fc.", "AuxLogits.fc."))
    for name in ("fc.weight", "AuxLogits.fc.bias"):
        assert torch.equal(target.state_dict()[name], fresh[name])


def test_a_file_with_or_without_side_head() -> None:
    with_aux = network(seed=1).state_dict()
    without_aux = network(seed=1, has_aux_heads=False).state_dict()
    bare = network(seed=2, has_aux_heads=False)
    assert load_weights(bare, with_aux, "w.pt") == []
    assert_loaded(bare, with_aux)
    whole = network(seed=2)
    assert load_weights(whole, without_aux, "w.pt") == ["AuxLogits"]
    assert_loaded(whole, without_aux, except_for=("AuxLogits.",))


def test_wrong_state_dicts_are_named_in_one_line() -> None:
    source = network(seed=1).state_dict()
    target = network(seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    incomplete = {n: t for n, t in source.items() if not n.startswith("Mixed_6b")}
    for wrong, message in (
        (incomplete, r"lacks 50 of the tensors of inception_v3 \(Mixed_6b.*, \.\.\.\)"),
        ({**source, "head.bias": torch.zeros(3)}, r"has unknown 1 .*\(head\.bias\)"),
        (network("googlenet").state_dict(), "lacks"),
        (network(width=0.2).state_dict(), "in another shape"),
        ({**source, "fc.weight": torch.tensor(1.0)}, r"in another shape 1 .*\(fc\.weight\)"),
        ({}, "lacks"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_weights(target, wrong, "s3://b/w.pt")
        assert "\n" not in str(caught.value)
    assert_loaded(target, before)  # nothing was loaded in part


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "w.pt"), (b"no weights", "w.pth"), (b"no weights", "w.safetensors"),
        (b"", "w.safetensors"), (saved([1, 2]), "w.pt"), (saved({"a": 1}), "w.pt"),
        (saved({1: torch.zeros(1)}), "w.pt"),
        (saved({"a": torch.zeros(9)})[:-40], "w.pt"),
    ],
)  # fmt: skip
def test_other_files_are_one_line(content: bytes, name: str) -> None:
    with pytest.raises(ModelError, match=r"^model\.init_from: got w\.") as caught:
        read_weights(content, name)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.init_from: got w\.") as caught:
        read_weights(saved(Malicious(tmp_path / "created")), "w.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "created").exists()


def test_files_older_than_batch_norms_counter_load() -> None:
    source = network("googlenet", seed=1).state_dict()
    old = {n: t for n, t in source.items() if not n.endswith("num_batches_tracked")}
    target = network("googlenet", seed=2)
    assert load_weights(target, old, "w.pth") == []
    assert_loaded(target, source)
