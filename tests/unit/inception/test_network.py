"""inception_v3 and v4 are the published networks: names, logits, parameters, multiply-adds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from inception.cost import count_cost
from inception.errors import ModelError
from inception.family import build_architecture
from inception.network import build_network
from inception.options import Options

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def fill(state: dict[str, torch.Tensor]) -> None:
    """Fills all float tensors, in order, with one sine, as the golden files were made."""
    i = 0
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            continue
        values = np.sin(0.7391 * np.arange(i, i + tensor.numel()) + 0.3)
        i += tensor.numel()
        if tensor.ndim > 1:
            values = values * math.sqrt(6 / tensor[0].numel())
        elif name.endswith(("running_var", "bn.weight")):
            values = 1 + 0.1 * values
        else:
            values = 0.1 * values
        tensor.copy_(torch.from_numpy(values.reshape(tensor.shape)).float())


def test_state_dict_has_torchvisions_names_in_order() -> None:
    expected = (GOLDEN / "inception_v3_keys.txt").read_text().split()
    network = build_network(build_architecture("inception_v3", num_classes=1000))
    assert list(network.state_dict()) == expected
    assert len(expected) == 580


def test_logits_are_torchvisions() -> None:
    golden = json.loads((GOLDEN / "inception_v3_logits.json").read_text())
    network = build_network(build_architecture("inception_v3", num_classes=1000)).eval()
    with torch.no_grad():
        fill(network.state_dict())
        images = np.sin(0.01 * np.arange(2 * 3 * 299 * 299)).reshape(2, 3, 299, 299)
        logits = network(torch.from_numpy(images).float())
    assert torch.allclose(logits, torch.tensor(golden["logits"]), atol=1e-4)


def test_v4_is_timms_by_name_and_logit() -> None:
    expected = (GOLDEN / "inception_v4_keys.txt").read_text().split()
    golden = json.loads((GOLDEN / "inception_v4_logits.json").read_text())
    network = build_network(build_architecture("inception_v4", num_classes=1000)).eval()
    assert list(network.state_dict()) == expected
    with torch.no_grad():
        fill(network.state_dict())
        images = np.sin(0.01 * np.arange(3 * 299 * 299)).reshape(1, 3, 299, 299)
        logits = network(torch.from_numpy(images).float())
    assert torch.allclose(logits, torch.tensor(golden["logits"]), atol=1e-4)


def test_googlenet_with_3x3_is_torchvisions_by_name_and_logit() -> None:
    expected = (GOLDEN / "googlenet_keys.txt").read_text().split()
    golden = json.loads((GOLDEN / "googlenet_logits.json").read_text())
    architecture = build_architecture(
        "googlenet", num_classes=1000, options=Options(conv_5x5="3x3")
    )
    network = build_network(architecture).eval()
    state = network.state_dict()
    assert set(state) == set(expected)  # torchvision's auxiliary heads come last
    with torch.no_grad():
        fill({name: state[name] for name in expected})
        images = np.sin(0.01 * np.arange(2 * 3 * 224 * 224)).reshape(2, 3, 224, 224)
        logits = network(torch.from_numpy(images).float())
    assert torch.allclose(logits, torch.tensor(golden["logits"]), atol=1e-4)
    cost = count_cost(architecture)
    assert cost.parameters - cost.aux_head_parameters == 6_624_904
    assert round(cost.multiply_adds / 1e9, 3) == 1.498


@pytest.mark.parametrize(
    ("input_size", "giga"), [(299, 5.713), (75, 0.204), (96, 0.341), (128, 0.733), (224, 2.838)]
)
def test_counted_multiply_adds(input_size: int, giga: float) -> None:
    cost = count_cost(build_architecture("inception_v3", num_classes=1000, input_size=input_size))
    assert round(cost.multiply_adds / 1e9, 3) == giga
    assert cost.parameters - cost.aux_head_parameters == 23_834_568


@pytest.mark.parametrize(("width", "input_size"), [(1.0, 299), (0.25, 75), (0.5, 128)])
def test_count_agrees_with_the_built_network(width: float, input_size: int) -> None:
    architecture = build_architecture(
        "inception_v3", num_classes=10, input_size=input_size, width=width
    )
    cost = count_cost(architecture)
    network = build_network(architecture).eval()
    assert sum(p.numel() for p in network.parameters()) == cost.parameters
    counted = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counted += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, input_size, input_size))
    assert counted == cost.multiply_adds


def test_full_network_has_the_published_parameters() -> None:
    cost = count_cost(build_architecture("inception_v3", num_classes=1000))
    assert cost.parameters == 27_161_264
    stages = {stage.name: (stage.grid, stage.channels) for stage in cost.stages}
    assert stages["maxpool2"] == (35, 192)
    assert stages["Mixed_5d"] == (35, 288)
    assert stages["Mixed_6e"] == (17, 768)
    assert stages["Mixed_7c"] == (8, 2048)


def test_training_gives_both_heads_and_evaluation_one() -> None:
    for has_aux_heads in (True, False):
        architecture = build_architecture(
            "inception_v3", num_classes=7, input_size=75, width=0.25, has_aux_heads=has_aux_heads
        )
        network = build_network(architecture)
        logits, aux_logits = network(torch.zeros(2, 3, 75, 75))
        assert logits.shape == (2, 7)
        assert [aux.shape for aux in aux_logits] == [(2, 7)] * has_aux_heads
        assert network.eval()(torch.zeros(2, 3, 75, 75)).shape == (2, 7)


@pytest.mark.parametrize("input_size", [75, 107, 128, 224, 299, 331])
def test_side_head_works_at_every_size(input_size: int) -> None:
    architecture = build_architecture(
        "inception_v3", num_classes=4, input_size=input_size, width=0.1
    )
    _, (aux,) = build_network(architecture)(torch.zeros(2, 3, input_size, input_size))
    assert aux.shape == (2, 4)


def test_seed_alone_decides_the_weights() -> None:
    architecture = build_architecture("inception_v3", num_classes=4, input_size=75, width=0.1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network(architecture, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_network(architecture, seed=3).state_dict()
    other = build_network(architecture, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    # TensorFlow's standard deviation of 0.01, cut at two (a tenth of torchvision's).
    assert first["fc.weight"].abs().max() <= 0.02
    weight = first["Mixed_6a.branch3x3dbl_2.conv.weight"]
    assert float(weight.var() * weight[0].numel()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "inception_v33"}, "Did you mean inception_v3?"),
        ({"input_size": 74}, "at least 75 px"),
        ({"num_classes": 1}, "at least 2"),
        ({"width": 0.0}, "more than 0"),
    ],
)
def test_wrong_description_is_one_line(fields: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"name": "inception_v3", "num_classes": 10} | fields
    with pytest.raises(ModelError) as caught:
        build_architecture(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
