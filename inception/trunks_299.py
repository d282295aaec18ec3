"""The trunks published at 299 pixels: which stages they are made of. Descriptions, no torch here.

inception_v3: arXiv 1512.00567 as released in TensorFlow (the paper's printed table 1 differs from
its own graph, and the graph is followed), under torchvision's names. inception_v2: the same
paper's ladder before "factorized 7x7" and "BN-auxiliary". inception_seed: the blocks of the
article this project began with, completed by v3's stem, reductions and heads. inception_v4:
1602.07261, under timm's names.
"""

from inception.blocks import (
    Block,
    Branch,
    Conv,
    Fork,
    Law,
    Pool,
    Scale,
    SidePlace,
    Stage,
    Trunk,
    block_a,
    block_b,
    block_c,
    line,
    reduction_a,
    reduction_b,
    square,
    stem_v3,
)
from inception.rewrites import join_7x7


def _stages(blocks: tuple[Block, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(block.name, block) for block in blocks)


def _body_v3(s: Scale) -> tuple[Stage, ...]:
    return _stages(
        (
            block_a("Mixed_5b", s, pool_channels=32),
            block_a("Mixed_5c", s, pool_channels=64),
            block_a("Mixed_5d", s, pool_channels=64),
            reduction_a("Mixed_6a", s),
            block_b("Mixed_6b", s, channels=128),
            block_b("Mixed_6c", s, channels=160),
            block_b("Mixed_6d", s, channels=160),
            block_b("Mixed_6e", s, channels=192),
            reduction_b("Mixed_7a", s),
            block_c("Mixed_7b", s),
            block_c("Mixed_7c", s),
        )
    )


def inception_v3(s: Scale) -> Trunk:
    side = SidePlace(name="AuxLogits", after="Mixed_6e")
    return Trunk(stages=(*stem_v3(s), *_body_v3(s)), sides=(side,))


def inception_v2(s: Scale) -> Trunk:
    side = SidePlace(name="AuxLogits", after="Mixed_6e", cover_has_norm=False)
    return Trunk(stages=join_7x7((*stem_v3(s), *_body_v3(s))), sides=(side,))


def inception_seed(s: Scale) -> Trunk:
    """3 A + 5 B + 2 C with n = 3, max pools and ReLU6. The article leaves widths to the caller:
    they are v3's here, 128, 128, 160, 160, 192 for the five B."""
    blocks = (
        block_a("Mixed_5b", s, pool_channels=32, pool="max", middle=3),
        block_a("Mixed_5c", s, pool_channels=64, pool="max", middle=3),
        block_a("Mixed_5d", s, pool_channels=64, pool="max", middle=3),
        reduction_a("Mixed_6a", s),
        block_b("Mixed_6b", s, channels=128, n=3, pool="max"),
        block_b("Mixed_6c", s, channels=128, n=3, pool="max"),
        block_b("Mixed_6d", s, channels=160, n=3, pool="max"),
        block_b("Mixed_6e", s, channels=160, n=3, pool="max"),
        block_b("Mixed_6f", s, channels=192, n=3, pool="max"),
        reduction_b("Mixed_7a", s),
        block_c("Mixed_7b", s, pool="max"),
        block_c("Mixed_7c", s, pool="max"),
    )
    side = SidePlace(name="AuxLogits", after="Mixed_6f")
    return Trunk(stages=(*stem_v3(s), *_stages(blocks)), sides=(side,), activation="relu6")


def inception_v4(s: Scale) -> Trunk:
    """4 A + 7 B + 3 C behind a stem that branches three times (1602.07261, figures 3 to 9)."""

    def row(width: int, channels: int) -> Conv:
        return line(s(channels), width=width)

    def column(height: int, channels: int) -> Conv:
        return line(s(channels), height=height)

    def branch(number: int, *layers: Conv | Pool) -> Branch:
        return Branch(f"branch{number}", layers, Law.SEQUENTIAL)

    def one(channels: int) -> Conv:
        return square(s(channels), 1)

    def three(channels: int, *, stride: int = 1, same: bool = False) -> Conv:
        return square(s(channels), 3, stride=stride, same=same)

    average = Pool("avg", padding=1, counts_padding=False)
    shrink = Branch("maxpool", (Pool("max", stride=2),), Law.SEQUENTIAL)
    mixed_3a = (shrink, Branch("conv", (three(96, stride=2),), Law.SEQUENTIAL))
    mixed_4a = (
        branch(0, one(64), three(96)),
        branch(1, one(64), row(7, 64), column(7, 64), three(96)),
    )
    mixed_5a = (Branch("conv", (three(192, stride=2),), Law.SEQUENTIAL), shrink)
    block_35 = (
        branch(0, one(96)),
        branch(1, one(64), three(96, same=True)),
        branch(2, one(64), three(96, same=True), three(96, same=True)),
        branch(3, average, one(96)),
    )
    to_17 = (
        branch(0, three(384, stride=2)),
        branch(1, one(192), three(224, same=True), three(256, stride=2)),
        branch(2, Pool("max", stride=2)),
    )
    block_17 = (
        branch(0, one(384)),
        branch(1, one(192), row(7, 224), column(7, 256)),
        branch(2, one(192), column(7, 192), row(7, 224), column(7, 224), row(7, 256)),
        branch(3, average, one(128)),
    )
    to_8 = (
        branch(0, one(192), three(192, stride=2)),
        branch(1, one(256), row(7, 256), column(7, 320), three(320, stride=2)),
        branch(2, Pool("max", stride=2)),
    )
    fork = Fork((row(3, 256), column(3, 256)))
    block_8 = (
        branch(0, one(256)),
        Branch("branch1", (one(384), fork), Law.FROM_ZERO),
        Branch("branch2", (one(384), column(3, 448), row(3, 512), fork), Law.FROM_ZERO),
        branch(3, average, one(256)),
    )
    bodies: list[Conv | tuple[Branch, ...]] = [
        three(32, stride=2), three(32), three(64, same=True), mixed_3a, mixed_4a, mixed_5a,
        *[block_35] * 4, to_17, *[block_17] * 7, to_8, *[block_8] * 3,
    ]  # fmt: skip
    names = [f"features.{number}" for number in range(len(bodies))]
    return Trunk(
        stages=tuple(
            Stage(name, body if isinstance(body, Conv) else Block(name, body))
            for name, body in zip(names, bodies, strict=True)
        ),
        classifier="last_linear",
    )
