"""Every network: published counts, names of released weights, training."""

import pytest
import torch
from torch import nn

from inception.cost import count_cost
from inception.family import MODEL_NAMES, build_architecture
from inception.loss import inception_loss
from inception.network import build_network
from inception.optim import build_optimizer

# Input size, G multiply-adds and parameters without auxiliary heads: inception_v4 is timm's,
# inception_v2 is v3 with the 7x7 stem.
COUNTS = {
    "googlenet": (224, 1.583, 7_005_832),
    "bn_inception": (224, 2.019, 11_194_984),
    "inception_v2": (299, 5.300, 23_815_336),
    "inception_seed": (299, 5.007, 21_871_560),
    "inception_v3": (299, 5.713, 23_834_568),
    "inception_v4": (299, 12.254, 42_679_816),
}


def test_every_member_is_counted_here() -> None:
    assert set(COUNTS) == set(MODEL_NAMES)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_published_counts(name: str) -> None:
    size, giga, parameters = COUNTS[name]
    architecture = build_architecture(name, num_classes=1000)
    cost = count_cost(architecture)
    assert architecture.input_size == size
    assert round(cost.multiply_adds / 1e9, 3) == giga
    assert cost.parameters - cost.aux_head_parameters == parameters


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_counts_are_the_built_networks(name: str) -> None:
    architecture = build_architecture(name, num_classes=10, input_size=128, width=0.25)
    cost = count_cost(architecture)
    network = build_network(architecture)
    assert sum(p.numel() for p in network.parameters()) == cost.parameters
    counted = 0
    aux_prefixes = tuple(f"{head.name}." for head in architecture.aux_heads)

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d | nn.Linear)
        cells = output[0].numel() // output.shape[1]
        counted += cells * module.weight.numel()

    for child, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not child.startswith(aux_prefixes):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 128, 128))
    assert counted == cost.multiply_adds


def test_the_articles_blocks_with_its_biases_are_the_counted_21_89_million() -> None:
    """The article's convolutions have a bias, which batch norm cancels: ours have none."""
    network = build_network(
        build_architecture("inception_seed", num_classes=1000, has_aux_heads=False)
    )
    channels = sum(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    parameters = sum(p.numel() for p in network.parameters())
    assert round((parameters + channels) / 1e6, 2) == 21.89


def test_the_seeds_activation_and_pools() -> None:
    network = build_network(build_architecture("inception_seed", num_classes=4, input_size=75))
    block = network.get_submodule("Mixed_5b")
    assert "branch3x3_2" in dict(block.named_children())
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 20.0)
    with torch.no_grad():
        out = block(torch.randn(2, 192, 7, 7))
    assert float(out.max()) == 6.0


@pytest.mark.parametrize("name", ["inception_v2", "inception_v3"])
def test_the_side_heads_covering_layer_has_batch_norm_in_v3_alone(name: str) -> None:
    state = build_network(build_architecture(name, num_classes=4)).state_dict()
    assert ("AuxLogits.conv1.bn.weight" in state) == (name == "inception_v3")
    assert ("AuxLogits.conv1.conv.bias" in state) == (name == "inception_v2")


@pytest.mark.parametrize(
    "name",
    [
        name if name == "inception_v3" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in MODEL_NAMES
    ],
)
def test_every_member_overfits_one_batch(name: str) -> None:
    """16 images of noise, with the auxiliary heads' losses."""
    torch.manual_seed(0)
    size = 64 if COUNTS[name][0] == 224 else 75
    architecture = build_architecture(name, num_classes=16, input_size=size, width=0.1, dropout=0.0)
    network = build_network(architecture, seed=1)
    images, targets = torch.randn(16, 3, size, size), torch.arange(16)
    optimizer = build_optimizer(
        network, name="adamw", lr=3e-3, weight_decay=0.0, momentum=0.9, decay=0.9, eps=1e-8
    )
    for _ in range(80):
        logits, aux_logits = network(images)
        if int((logits.argmax(1) == targets).sum()) == 16:
            break
        loss = inception_loss(
            logits, aux_logits, targets, weights=torch.ones(16), label_smoothing=0.0
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert int((logits.argmax(1) == targets).sum()) == 16


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_activations_are_what_the_backward_pass_keeps(name: str) -> None:
    """But for a fiftieth: the classifier, and batch norm's statistics."""
    architecture = build_architecture(
        name, num_classes=10, input_size=139, width=0.25, has_aux_heads=False
    )
    network = build_network(architecture)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(4, 3, 139, 139)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(images)  # kept alive, so that no storage is used twice
    assert outputs is not None
    counted = 4 * count_cost(architecture).activation_bytes
    assert sum(kept.values()) == pytest.approx(counted, rel=0.02)
