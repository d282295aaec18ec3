"""Options: each changes the description as the paper says, and the network with it."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inception.blocks import Block, Conv, Layer, Pool, Stage, block, branch, conv
from inception.cost import Cost, count_cost
from inception.errors import ModelError
from inception.family import (
    MODEL_NAMES,
    Architecture,
    build_architecture,
    output_size,
    smallest_input,
)
from inception.network import build_network
from inception.options import CHOICES, Options
from inception.rewrites import with_5x5, with_asymmetric


def described(name: str = "inception_v3", **options: Any) -> Architecture:
    size = options.pop("input_size", None)
    return build_architecture(name, num_classes=1000, input_size=size, options=Options(**options))


def cost(name: str = "inception_v3", **options: Any) -> Cost:
    return count_cost(described(name, **options))


def layers(architecture: Architecture, stage_name: str, branch_name: str) -> tuple[Layer, ...]:
    body = next(stage.body for stage in architecture.stages if stage.name == stage_name)
    assert isinstance(body, Block)
    return next(b.layers for b in body.branches if b.name == branch_name)


def kernels(chain: tuple[Layer, ...]) -> list[tuple[int, int]]:
    return [layer.kernel for layer in chain if isinstance(layer, Conv)]


def multiply_adds(chain: tuple[Layer, ...]) -> int:
    """Per cell and pair of channels, if the channels are equal throughout."""
    return sum(height * width for height, width in kernels(chain))


def only_layers(stages: tuple[Stage, ...]) -> tuple[Layer, ...]:
    """Of a single stage with a single branch."""
    (stage,) = stages
    assert isinstance(stage.body, Block)
    return stage.body.branches[0].layers


def test_a_5x5_as_two_3x3_costs_18_of_25() -> None:
    large = conv(8, 5, padding=2)
    pair = only_layers(with_5x5((block("block", branch("branch", large)),), "two_3x3"))
    assert kernels(pair) == [(3, 3), (3, 3)]
    assert Fraction(multiply_adds(pair), multiply_adds((large,))) == Fraction(18, 25)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_an_n_x_n_as_1_x_n_and_n_x_1_costs_2_of_n(n: int) -> None:
    square = conv(8, n, padding=n // 2)
    pair = only_layers(with_asymmetric((block("block", branch("branch", square)),), "c"))
    assert kernels(pair) == [(1, n), (n, 1)]
    assert Fraction(multiply_adds(pair), multiply_adds((square,))) == Fraction(2, n)  # 6/9 for 3


def test_the_ratios_show_in_a_whole_network() -> None:
    """v3's asymmetric pairs as 7x7, counted in one stage; GoogLeNet's 5x5 as pairs of 3x3."""
    pairs, squares = cost(), cost(asymmetric_blocks="")
    i = next(i for i, stage in enumerate(pairs.stages) if stage.name == "Mixed_6e")
    cells = pairs.stages[i].grid ** 2
    pair_weights = 6 * 7 * 192 * 192  # of branch7x7 and branch7x7dbl
    difference = squares.stages[i].multiply_adds - pairs.stages[i].multiply_adds
    assert difference == cells * (3 * 49 * 192 * 192 - pair_weights)
    assert cost("googlenet", conv_5x5="two_3x3").multiply_adds > 0


@pytest.mark.parametrize(("size", "giga"), [(299, 5.713), (151, 5.713), (79, 5.362)])
def test_low_resolution_stems_cost_the_same(size: int, giga: float) -> None:
    architecture = described(stem=size, input_size=size)
    assert round(count_cost(architecture).multiply_adds / 1e9, 3) == giga


def test_smallest_inputs_follow_the_stem() -> None:
    smallest = [smallest_input(described(stem=s, input_size=299).stages) for s in (299, 151, 79)]
    assert smallest == [75, 39, 21]
    with pytest.raises(ModelError, match="at least 21 px"):
        described(stem=79, input_size=20)


def test_the_ladders_last_rows_are_inception_v3() -> None:
    v3 = described()
    from_v2 = described("inception_v2", factorized_7x7=True, side_head_norm=True)
    assert (from_v2.stages, from_v2.aux_heads) == (v3.stages, v3.aux_heads)
    from_v3 = described(factorized_7x7=False, side_head_norm=False)
    v2 = described("inception_v2")
    assert (from_v3.stages, from_v3.aux_heads) == (v2.stages, v2.aux_heads)


def test_what_a_network_has_already_changes_nothing() -> None:
    for name, options in {
        "inception_v3": Options(
            stem=299, factorized_7x7=True, asymmetric_blocks="b", asymmetric_n=7, pool="avg",
            inner_activation="relu", activation="relu", reduction="parallel", batch_norm=True,
            pool_counts_padding=True, side_head_norm=True, init="variance_scaling",
        ),
        "inception_seed": Options(pool="max", activation="relu6", conv_5x5="3x3"),
        "googlenet": Options(conv_5x5="5x5", pool="max"),
        "inception_v4": Options(pool_counts_padding=False, conv_5x5="two_3x3"),
    }.items():  # fmt: skip
        published = build_architecture(name, num_classes=10)
        assert build_architecture(name, num_classes=10, options=options) == published, name


def test_where_pairs_stand() -> None:
    everywhere, nowhere = described(asymmetric_blocks="abc"), described(asymmetric_blocks="")
    a = layers(everywhere, "Mixed_5b", "branch5x5")
    assert kernels(a) == [(1, 1), (1, 5), (5, 1)]
    c = layers(everywhere, "Mixed_7b", "branch3x3dbl")
    assert kernels(c[:3]) == [(1, 1), (1, 3), (3, 1)]
    assert isinstance(c[3], Block)
    b = layers(nowhere, "Mixed_6b", "branch7x7dbl")
    assert kernels(b) == [(1, 1), (7, 7), (7, 7)]
    short = layers(described(asymmetric_n=3), "Mixed_7a", "branch7x7x3")
    assert kernels(short) == [(1, 1), (1, 3), (3, 1), (3, 3)]


def test_linear_inside_a_factorization_keeps_signs() -> None:
    network = build_network(
        build_architecture(
            "inception_v3", num_classes=4, input_size=75, width=0.25,
            options=Options(inner_activation="linear"),
        )
    )  # fmt: skip
    linear = {
        name
        for name, module in network.named_modules()
        if hasattr(module, "conv") and not hasattr(module, "activation")
    }
    assert "Mixed_5b.branch3x3dbl_2" in linear  # the first of two 3x3
    assert "Mixed_6b.branch7x7_2" in linear
    assert {"Mixed_6b.branch7x7dbl_2", "Mixed_6b.branch7x7dbl_4"} <= linear
    assert not linear & {"Mixed_5b.branch3x3dbl_3", "Mixed_6b.branch7x7_3", "Mixed_5b.branch5x5_2"}
    inner = network.get_submodule("Mixed_5b.branch3x3dbl_2")
    with torch.no_grad():
        assert float(inner(torch.randn(2, inner.conv.in_channels, 7, 7)).min()) < 0  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("kind", CHOICES["reduction"])
def test_reductions_end_in_the_same_grid_and_channels(kind: str) -> None:
    """Figure 9: pooling first is cheap, but a bottleneck; convolving first is expensive."""
    plain, other = cost(), cost(reduction=kind)
    assert [(s.grid, s.channels) for s in other.stages] == [
        (s.grid, s.channels) for s in plain.stages
    ]
    assert other.parameters == plain.parameters
    sign = {"pool_then_conv": -1, "parallel": 0, "conv_then_pool": 1}[kind]
    difference = other.multiply_adds - plain.multiply_adds
    assert (difference > 0) - (difference < 0) == sign


def test_pools_and_their_padding() -> None:
    def pools(**options: Any) -> set[tuple[str, bool]]:
        return {
            (layer.kind, layer.counts_padding)
            for stage in described(**options).stages
            if isinstance(stage.body, Block)
            for branch in stage.body.branches
            for layer in branch.layers
            if isinstance(layer, Pool) and layer.stride == 1
        }

    assert pools() == {("avg", True)}
    assert pools(pool="max") == {("max", True)}
    assert pools(pool_counts_padding=False) == {("avg", False)}


def test_without_batch_norm_there_are_biases() -> None:
    network = build_network(
        build_architecture(
            "googlenet", num_classes=4, input_size=64, width=0.1, options=Options(batch_norm=False)
        )
    )
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))


def test_initial_weights_by_rule() -> None:
    def deviation(init: str) -> float:
        network = build_network(described("bn_inception", init=init))
        weight = network.get_parameter("Mixed_5c.branch3x3_2.conv.weight")
        return float(weight.detach().std())

    # Cut at two standard deviations, a normal distribution keeps 0.8796 of its deviation.
    assert deviation("fixed") == pytest.approx(0.1 * 0.8796, rel=0.01)
    assert deviation("variance_scaling") == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inception_v3", {"stem": 150}, "Did you mean 151?"),
        ("inception_v3", {"reduction": "paralel"}, "Did you mean parallel?"),
        ("inception_v3", {"asymmetric_blocks": "bb"}, "each at most once"),
        ("inception_v3", {"asymmetric_n": 4}, "an odd number"),
        ("googlenet", {"asymmetric_n": 3}, "no pairs of 1 x n and n x 1"),
        ("googlenet", {"reduction": "parallel"}, "by pools alone"),
        ("googlenet", {"side_head_norm": True}, "no side head of v3's kind"),
        ("bn_inception", {"side_head_norm": True}, "no side head of v3's kind"),
        ("inception_v4", {"stem": 79}, "no pool before its first block"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        described(name, **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.options.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("reduction", [None, "pool_then_conv", "conv_then_pool"])
def test_branches_of_a_block_leave_the_same_grid_at_every_size(
    name: str, reduction: str | None
) -> None:
    if name == "googlenet" and reduction is not None:
        return
    stages = described(name, reduction=reduction).stages
    for size in range(smallest_input(stages), 400):
        grid = size
        for stage in stages:
            if isinstance(stage.body, Block):
                grids = {output_size(b.layers, grid) for b in stage.body.branches}
                assert len(grids) == 1, (size, stage.name)
            grid = output_size([stage.body], grid)


choices = {name: st.sampled_from([None, *values]) for name, values in CHOICES.items()}
maybe = st.sampled_from([None, True, False])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(MODEL_NAMES),
    options=st.fixed_dictionaries(
        choices
        | {
            "factorized_7x7": maybe,
            "batch_norm": maybe,
            "pool_counts_padding": maybe,
            "side_head_norm": maybe,
            "asymmetric_blocks": st.sampled_from([None, "", "a", "b", "ac", "abc"]),
            "asymmetric_n": st.sampled_from([None, 3, 5, 9]),
        }
    ),
)
def test_every_combination_builds_and_is_counted_or_is_refused(
    name: str, options: dict[str, Any]
) -> None:
    """The counts of the description are those of the network; forward and backward run."""
    try:
        architecture = build_architecture(
            name, num_classes=4, input_size=80, width=0.05, options=Options(**options)
        )
    except ModelError:
        return
    network = build_network(architecture)
    assert sum(p.numel() for p in network.parameters()) == count_cost(architecture).parameters
    logits, aux_logits = network(torch.randn(2, 3, 80, 80))
    (logits.sum() + sum(aux.sum() for aux in aux_logits)).backward()
    assert all(p.grad is not None for p in network.parameters())
