"""The trunks of the family: which stages a network is made of. Descriptions, no torch here.

inception_v3: arXiv 1512.00567 as released in TensorFlow (the paper's printed table 1 differs from
its own graph, and the graph is followed), under torchvision's names. inception_v2: the same
paper's ladder before "factorized 7x7" and "BN-auxiliary". inception_seed: the blocks of the
article this project began with, completed by v3's stem, reductions and heads. googlenet: 1409.4842
with batch norm, under torchvision's names. bn_inception: 1502.03167, which TensorFlow-slim calls
"inception_v2"; it is another network than the paper's v2. inception_v4: 1602.07261, under timm's
names.
"""

from collections.abc import Callable
from dataclasses import dataclass

from inception.blocks import (
    Block,
    Branch,
    Conv,
    Fork,
    Law,
    Pool,
    Scale,
    Stage,
    block_a,
    block_b,
    block_c,
    line,
    reduction_a,
    reduction_b,
    square,
    stem_v3,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SidePlace:
    """Where a side head hangs, and what it is called. A GoogLeNet head pools to 4x4 and has a
    hidden layer; v3's pools 5x5 and covers the grid with a convolution (its `cover_has_norm`:
    the ladder's BN-auxiliary)."""

    name: str
    after: str
    is_googlenet: bool = False
    cover_has_norm: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """Stages, side heads and what else belongs to a network by its name."""

    stages: tuple[Stage, ...]
    sides: tuple[SidePlace, ...] = ()
    input_size: int = 299  # that it was published with
    activation: str = "relu"
    classifier: str = "fc"


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


def _inception_v3(s: Scale) -> Trunk:
    side = SidePlace(name="AuxLogits", after="Mixed_6e")
    return Trunk(stages=(*stem_v3(s), *_body_v3(s)), sides=(side,))


def _inception_v2(s: Scale) -> Trunk:
    side = SidePlace(name="AuxLogits", after="Mixed_6e", cover_has_norm=False)
    return Trunk(stages=(*stem_v3(s, is_factorized=False), *_body_v3(s)), sides=(side,))


def _inception_seed(s: Scale) -> Trunk:
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


def _stem_224(s: Scale, names: tuple[str, ...]) -> tuple[Stage, ...]:
    """224 -> 28x28x192, GoogLeNet's: 7x7, 1x1, 3x3 and two pools."""
    bodies: tuple[Conv | Pool, ...] = (
        Conv(s(64), (7, 7), 2, (3, 3)),
        Pool("max", stride=2, rounds_up=True),
        square(s(64), 1),
        square(s(192), 3, same=True),
        Pool("max", stride=2, rounds_up=True),
    )
    return tuple(Stage(name, body) for name, body in zip(names, bodies, strict=True))


def _googlenet(s: Scale, *, large: int = 5) -> Trunk:
    """large: the kernel of the third branch; the paper's is 5, torchvision's code has 3."""

    def block(
        name: str, one: int, mid: tuple[int, int], big: tuple[int, int], pooled: int
    ) -> Stage:
        return Stage(
            name,
            Block(
                name,
                (
                    Branch("branch1", (square(s(one), 1),), Law.SEQUENTIAL),
                    Branch(
                        "branch2",
                        (square(s(mid[0]), 1), square(s(mid[1]), 3, same=True)),
                        Law.SEQUENTIAL,
                    ),
                    Branch(
                        "branch3",
                        (square(s(big[0]), 1), square(s(big[1]), large, same=True)),
                        Law.SEQUENTIAL,
                    ),
                    Branch(
                        "branch4",
                        (Pool("max", padding=1, rounds_up=True), square(s(pooled), 1)),
                        Law.SEQUENTIAL,
                    ),
                ),
            ),
        )

    return Trunk(
        stages=(
            *_stem_224(s, ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")),
            block("inception3a", 64, (96, 128), (16, 32), 32),
            block("inception3b", 128, (128, 192), (32, 96), 64),
            Stage("maxpool3", Pool("max", stride=2, rounds_up=True)),
            block("inception4a", 192, (96, 208), (16, 48), 64),
            block("inception4b", 160, (112, 224), (24, 64), 64),
            block("inception4c", 128, (128, 256), (24, 64), 64),
            block("inception4d", 112, (144, 288), (32, 64), 64),
            block("inception4e", 256, (160, 320), (32, 128), 128),
            Stage("maxpool4", Pool("max", kernel=2, stride=2, rounds_up=True)),
            block("inception5a", 256, (160, 320), (32, 128), 128),
            block("inception5b", 384, (192, 384), (48, 128), 128),
        ),
        sides=(
            SidePlace(name="aux1", after="inception4a", is_googlenet=True),
            SidePlace(name="aux2", after="inception4d", is_googlenet=True),
        ),
        input_size=224,
    )


def _googlenet_3x3(s: Scale) -> Trunk:
    return _googlenet(s, large=3)


def _bn_inception(s: Scale) -> Trunk:
    """Channels: 1502.03167, figure 5."""

    def block(
        name: str, one: int, mid: tuple[int, int], double: tuple[int, int], pool: tuple[str, int]
    ) -> Stage:
        deep = (square(s(double[1]), 3, same=True),) * 2
        return Stage(
            name,
            Block(
                name,
                (
                    Branch("branch1x1", (square(s(one), 1),)),
                    Branch("branch3x3", (square(s(mid[0]), 1), square(s(mid[1]), 3, same=True))),
                    Branch("branch3x3dbl", (square(s(double[0]), 1), *deep)),
                    Branch("branch_pool", (Pool(pool[0], padding=1), square(s(pool[1]), 1))),
                ),
            ),
        )

    def reduction(name: str, mid: tuple[int, int], double: tuple[int, int]) -> Stage:
        def strided(channels: int) -> Conv:
            return Conv(s(channels), (3, 3), 2, (1, 1))

        return Stage(
            name,
            Block(
                name,
                (
                    Branch("branch3x3", (square(s(mid[0]), 1), strided(mid[1]))),
                    Branch(
                        "branch3x3dbl",
                        (
                            square(s(double[0]), 1),
                            square(s(double[1]), 3, same=True),
                            strided(double[1]),
                        ),
                    ),
                    Branch("branch_pool", (Pool("max", stride=2, rounds_up=True),)),
                ),
            ),
        )

    names = ("Conv2d_1a_7x7", "maxpool1", "Conv2d_2b_1x1", "Conv2d_2c_3x3", "maxpool2")
    return Trunk(
        stages=(
            *_stem_224(s, names),
            block("Mixed_3b", 64, (64, 64), (64, 96), ("avg", 32)),
            block("Mixed_3c", 64, (64, 96), (64, 96), ("avg", 64)),
            reduction("Mixed_4a", (128, 160), (64, 96)),
            block("Mixed_4b", 224, (64, 96), (96, 128), ("avg", 128)),
            block("Mixed_4c", 192, (96, 128), (96, 128), ("avg", 128)),
            block("Mixed_4d", 160, (128, 160), (128, 160), ("avg", 96)),
            block("Mixed_4e", 96, (128, 192), (160, 192), ("avg", 96)),
            reduction("Mixed_5a", (128, 192), (192, 256)),
            block("Mixed_5b", 352, (192, 320), (160, 224), ("avg", 128)),
            block("Mixed_5c", 352, (192, 320), (192, 224), ("max", 128)),
        ),
        input_size=224,
    )


def _inception_v4(s: Scale) -> Trunk:
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


TRUNKS: dict[str, Callable[[Scale], Trunk]] = {
    "googlenet": _googlenet,
    "googlenet_3x3": _googlenet_3x3,
    "bn_inception": _bn_inception,
    "inception_v2": _inception_v2,
    "inception_seed": _inception_seed,
    "inception_v3": _inception_v3,
    "inception_v4": _inception_v4,
}
