"""Freezing: nothing changes up to a named stage, everything after it."""

import pytest
import torch

from inception.ema import WeightAverage
from inception.errors import ModelError
from inception.family import build_architecture
from inception.network import InceptionNet, build_network
from inception.optim import build_optimizer
from inception.reduction import StepReduction
from inception.step import train_step
from inception.tree_sum import TreeSum
from orchestration.job.recipe import Model


class Batch:
    weights = torch.ones(4)

    def __init__(self, index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        self.index = index
        self.images = torch.randint(0, 256, (4, 3, 75, 75), generator=generator, dtype=torch.uint8)
        self.targets = torch.randint(0, 5, (4,), generator=generator)


def frozen(stage: str) -> InceptionNet:
    network = build_network(
        build_architecture("inception_v3", num_classes=5, input_size=75, width=0.1)
    )
    network.freeze_until(stage)
    return network


def test_frozen_stages_stay_bitwise_and_the_others_move() -> None:
    network = frozen("Mixed_5d")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = build_optimizer(network, name="rmsprop_tf", lr=0.05, weight_decay=4e-5)
    average = WeightAverage(network)
    reduction = StepReduction(network, TreeSum.of(3, 1), 0)
    for step in range(3):  # three micro-batches a step: statistics are summed from parts
        train_step(network, optimizer, [Batch(i) for i in range(3)], reduction, seed=0, step=step)
        average.update()
    frozen_prefixes = ("Conv2d", "Mixed_5")
    averaged = average.state_dict()["tensors"]
    for name, tensor in network.state_dict().items():
        if name.startswith(frozen_prefixes):
            assert torch.equal(tensor, before[name]), name
            if name in averaged:
                assert torch.equal(averaged[name], before[name]), name
        else:
            assert not torch.equal(tensor, before[name]), name


def test_frozen_batch_norms_stay_in_evaluation_through_mode_changes() -> None:
    network = frozen("Mixed_6a")
    network.eval().train()
    assert network.training
    assert not network.get_submodule("Mixed_6a").training
    assert not network.get_submodule("Conv2d_1a_3x3.bn").training
    assert network.get_submodule("Mixed_6b").training
    optimizer = build_optimizer(network, name="sgd", lr=0.1, weight_decay=0.0)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in network.get_submodule("Mixed_6a").parameters()}
    assert {id(p) for p in network.get_submodule("Mixed_6b").parameters()} <= optimized


def test_an_unknown_stage_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"model.freeze_until: got 'Mixed_5e'; .*Did you mean"):
        Model(num_classes=5, init_from="s3://bucket/weights.pt", freeze_until="Mixed_5e")
