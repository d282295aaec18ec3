"""The networks published at 299 pixels, stage by stage. Descriptions, no torch here.

inception_v3: 1512.00567 as released in TensorFlow (where table 1 of the paper differs from the
released graph, the graph is followed), under torchvision's names. inception_v2: the same paper's
network before "factorized 7x7" and "BN-auxiliary" (table 3). inception_seed: the blocks of the
article that this project started from, with v3's stem, reductions and auxiliary head. inception_v4:
1602.07261, under timm's names.
"""

from dataclasses import replace
from functools import partial

from inception.blocks import (
    AuxHead,
    Backbone,
    Block,
    Branch,
    Conv,
    Naming,
    Pool,
    Stage,
    Stages,
    block,
    branch,
    conv,
    pool_branch,
    sequential,
)
from inception.rewrites import merge_7x7


def conv_1xn(channels: int, n: int) -> Conv:
    """An asymmetric convolution that keeps the grid."""
    return Conv(channels, (1, n), 1, (0, n // 2))


def conv_nx1(channels: int, n: int) -> Conv:
    """An asymmetric convolution that keeps the grid."""
    return Conv(channels, (n, 1), 1, (n // 2, 0))


def expanded(channels: int) -> Block:
    """An expanded filter bank: 1x3 beside 3x1."""
    return Block((branch("a", conv_1xn(channels, 3)), branch("b", conv_nx1(channels, 3))))


def _stem() -> Stages:
    """299 -> 35x35x192 (1512.00567, table 1)."""
    return (
        Stage("Conv2d_1a_3x3", conv(32, 3, stride=2)),
        Stage("Conv2d_2a_3x3", conv(32, 3)),
        Stage("Conv2d_2b_3x3", conv(64, 3, padding=1)),
        Stage("maxpool1", Pool("max", stride=2)),
        Stage("Conv2d_3b_1x1", conv(80, 1)),
        Stage("Conv2d_4a_3x3", conv(192, 3)),
        Stage("maxpool2", Pool("max", stride=2)),
    )


def _block_a(name: str, *, pool_channels: int, pool: str, size: int) -> Stage:
    """35x35 (1512.00567, figure 5): a 5x5 factorized into two 3x3, beside a plain 5x5 in the
    released graph. size: the kernel of that branch, 3 in the figure."""
    return block(
        name,
        branch("branch1x1", conv(64, 1)),
        branch(f"branch{size}x{size}", conv(48, 1), conv(64, size, padding=size // 2)),
        branch("branch3x3dbl", conv(64, 1), conv(96, 3, padding=1), conv(96, 3, padding=1)),
        pool_branch(pool_channels, pool),
    )


def _reduction_a() -> Stage:
    """Grid reduction, 35x35 -> 17x17 (1512.00567, figure 10): stride-2 convolutions beside a
    stride-2 pool."""
    return block(
        "Mixed_6a",
        branch("branch3x3", conv(384, 3, stride=2)),
        branch("branch3x3dbl", conv(64, 1), conv(96, 3, padding=1), conv(96, 3, stride=2)),
        branch("branch_pool", Pool("max", stride=2)),
    )


def _block_b(name: str, *, channels: int, n: int, pool: str) -> Stage:
    """17x17 (1512.00567, figure 6): n x n as 1 x n and n x 1. The double branch starts with
    n x 1."""
    c = channels
    return block(
        name,
        branch("branch1x1", conv(192, 1)),
        branch(f"branch{n}x{n}", conv(c, 1), conv_1xn(c, n), conv_nx1(192, n)),
        branch(
            f"branch{n}x{n}dbl",
            conv(c, 1),
            conv_nx1(c, n),
            conv_1xn(c, n),
            conv_nx1(c, n),
            conv_1xn(192, n),
        ),
        pool_branch(192, pool),
    )


def _reduction_b() -> Stage:
    """Grid reduction, 17x17 -> 8x8."""
    return block(
        "Mixed_7a",
        branch("branch3x3", conv(192, 1), conv(320, 3, stride=2)),
        branch(
            "branch7x7x3", conv(192, 1), conv_1xn(192, 7), conv_nx1(192, 7), conv(192, 3, stride=2)
        ),
        branch("branch_pool", Pool("max", stride=2)),
    )


def _block_c(name: str, *, pool: str) -> Stage:
    """8x8 (1512.00567, figure 7): expanded filter banks."""
    return block(
        name,
        branch("branch1x1", conv(320, 1)),
        branch("branch3x3", conv(384, 1), expanded(384)),
        branch("branch3x3dbl", conv(448, 1), conv(384, 3, padding=1), expanded(384)),
        pool_branch(192, pool),
    )


def _v3(*b_channels: int, a_size: int = 5, n: int = 7, pool: str = "avg") -> Backbone:
    """b_channels: of each B; a_size and n: kernels in A and B; pool: in A, B and C."""
    a = [
        _block_a(f"Mixed_5{letter}", pool_channels=channels, pool=pool, size=a_size)
        for letter, channels in (("b", 32), ("c", 64), ("d", 64))
    ]
    b = [
        _block_b(f"Mixed_6{letter}", channels=channels, n=n, pool=pool)
        for letter, channels in zip("bcdef", b_channels, strict=False)
    ]
    c = [_block_c(f"Mixed_7{letter}", pool=pool) for letter in "bc"]
    return Backbone(
        stages=(*_stem(), *a, _reduction_a(), *b, _reduction_b(), *c),
        aux_heads=(AuxHead(name="AuxLogits", after=b[-1].name, conv1=conv(768, 5)),),
    )


def inception_v3() -> Backbone:
    return _v3(128, 160, 160, 192)


def inception_v2() -> Backbone:
    backbone = inception_v3()
    (head,) = backbone.aux_heads
    head = replace(head, conv1=Conv(768, (5, 5), has_norm=False))
    return replace(backbone, stages=merge_7x7(backbone.stages), aux_heads=(head,))


def inception_seed() -> Backbone:
    """3 A + 5 B + 2 C with n = 3, max pools and ReLU6. The article leaves the widths open: they are
    v3's, 128, 128, 160, 160 and 192 for the five B."""
    backbone = _v3(128, 128, 160, 160, 192, a_size=3, n=3, pool="max")
    return replace(backbone, activation="relu6")


def inception_v4() -> Backbone:
    """4 A + 7 B + 3 C after a stem with three branching stages (1602.07261, figures 3 to 9)."""
    from_zero = partial(branch, naming=Naming.FROM_ZERO)
    average = Pool("avg", padding=1, counts_padding=False)
    max_pool = Pool("max", stride=2)
    mixed_3a = (sequential("maxpool", max_pool), sequential("conv", conv(96, 3, stride=2)))
    mixed_4a = (
        sequential("branch0", conv(64, 1), conv(96, 3)),
        sequential("branch1", conv(64, 1), conv_1xn(64, 7), conv_nx1(64, 7), conv(96, 3)),
    )
    mixed_5a = (sequential("conv", conv(192, 3, stride=2)), sequential("maxpool", max_pool))
    conv_3x3 = conv(96, 3, padding=1)
    a = (
        sequential("branch0", conv(96, 1)),
        sequential("branch1", conv(64, 1), conv_3x3),
        sequential("branch2", conv(64, 1), conv_3x3, conv_3x3),
        sequential("branch3", average, conv(96, 1)),
    )
    to_17x17 = (
        sequential("branch0", conv(384, 3, stride=2)),
        sequential("branch1", conv(192, 1), conv(224, 3, padding=1), conv(256, 3, stride=2)),
        sequential("branch2", max_pool),
    )
    b = (
        sequential("branch0", conv(384, 1)),
        sequential("branch1", conv(192, 1), conv_1xn(224, 7), conv_nx1(256, 7)),
        sequential(
            "branch2",
            conv(192, 1),
            conv_nx1(192, 7),
            conv_1xn(224, 7),
            conv_nx1(224, 7),
            conv_1xn(256, 7),
        ),
        sequential("branch3", average, conv(128, 1)),
    )
    to_8x8 = (
        sequential("branch0", conv(192, 1), conv(192, 3, stride=2)),
        sequential(
            "branch1", conv(256, 1), conv_1xn(256, 7), conv_nx1(320, 7), conv(320, 3, stride=2)
        ),
        sequential("branch2", max_pool),
    )
    c = (
        sequential("branch0", conv(256, 1)),
        from_zero("branch1", conv(384, 1), expanded(256)),
        from_zero("branch2", conv(384, 1), conv_nx1(448, 3), conv_1xn(512, 3), expanded(256)),
        sequential("branch3", average, conv(256, 1)),
    )
    bodies: list[Conv | tuple[Branch, ...]] = [
        conv(32, 3, stride=2), conv(32, 3), conv(64, 3, padding=1), mixed_3a, mixed_4a, mixed_5a,
        *[a] * 4, to_17x17, *[b] * 7, to_8x8, *[c] * 3,
    ]  # fmt: skip
    return Backbone(
        stages=tuple(
            Stage(f"features.{i}", body if isinstance(body, Conv) else Block(body))
            for i, body in enumerate(bodies)
        ),
        classifier="last_linear",
    )
