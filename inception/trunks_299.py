"""The networks published at 299 pixels, stage by stage. Descriptions, no torch here.

inception_v3: 1512.00567 as released in TensorFlow (where table 1 of the paper differs from the
released graph, the graph is followed), under torchvision's names. inception_v2: the same paper's
network before "factorized 7x7" and "BN-auxiliary" (table 3). inception_seed: the blocks of the
article that this project started from, with v3's stem, reductions and auxiliary head. inception_v4:
1602.07261, under timm's names.
"""

from functools import partial

from inception.blocks import (
    AuxHead,
    Backbone,
    Block,
    Branch,
    Conv,
    Naming,
    ParallelConvs,
    Pool,
    Stage,
    branch,
    conv,
    conv_1xn,
    conv_nx1,
    inception_a,
    inception_b,
    inception_c,
    reduction_a,
    reduction_b,
    stem_v3,
)
from inception.rewrites import merge_7x7


def inception_v3() -> Backbone:
    return Backbone(
        stages=(
            *stem_v3(),
            inception_a("Mixed_5b", pool_channels=32),
            inception_a("Mixed_5c", pool_channels=64),
            inception_a("Mixed_5d", pool_channels=64),
            reduction_a("Mixed_6a"),
            inception_b("Mixed_6b", channels=128),
            inception_b("Mixed_6c", channels=160),
            inception_b("Mixed_6d", channels=160),
            inception_b("Mixed_6e", channels=192),
            reduction_b("Mixed_7a"),
            inception_c("Mixed_7b"),
            inception_c("Mixed_7c"),
        ),
        aux_heads=(AuxHead(name="AuxLogits", after="Mixed_6e", conv1=conv(768, 5)),),
    )


def inception_v2() -> Backbone:
    conv1 = Conv(768, (5, 5), has_norm=False)
    return Backbone(
        stages=merge_7x7(inception_v3().stages),
        aux_heads=(AuxHead(name="AuxLogits", after="Mixed_6e", conv1=conv1),),
    )


def inception_seed() -> Backbone:
    """3 A + 5 B + 2 C with n = 3, max pools and ReLU6. The article leaves the widths open: they are
    v3's, 128, 128, 160, 160 and 192 for the five B."""
    return Backbone(
        stages=(
            *stem_v3(),
            inception_a("Mixed_5b", pool_channels=32, pool="max", size=3),
            inception_a("Mixed_5c", pool_channels=64, pool="max", size=3),
            inception_a("Mixed_5d", pool_channels=64, pool="max", size=3),
            reduction_a("Mixed_6a"),
            inception_b("Mixed_6b", channels=128, n=3, pool="max"),
            inception_b("Mixed_6c", channels=128, n=3, pool="max"),
            inception_b("Mixed_6d", channels=160, n=3, pool="max"),
            inception_b("Mixed_6e", channels=160, n=3, pool="max"),
            inception_b("Mixed_6f", channels=192, n=3, pool="max"),
            reduction_b("Mixed_7a"),
            inception_c("Mixed_7b", pool="max"),
            inception_c("Mixed_7c", pool="max"),
        ),
        aux_heads=(AuxHead(name="AuxLogits", after="Mixed_6f", conv1=conv(768, 5)),),
        activation="relu6",
    )


def inception_v4() -> Backbone:
    """4 A + 7 B + 3 C after a stem with three branching stages (1602.07261, figures 3 to 9)."""
    sequential = partial(branch, naming=Naming.SEQUENTIAL)
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
    expanded = ParallelConvs((conv_1xn(256, 3), conv_nx1(256, 3)))
    c = (
        sequential("branch0", conv(256, 1)),
        from_zero("branch1", conv(384, 1), expanded),
        from_zero("branch2", conv(384, 1), conv_nx1(448, 3), conv_1xn(512, 3), expanded),
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
