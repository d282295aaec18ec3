"""The trunks published at 224 pixels: which stages they are made of. Descriptions, no torch here.

googlenet: 1409.4842 with batch norm, under torchvision's names. bn_inception: 1502.03167, which
TensorFlow-slim calls "inception_v2"; it is another network than the paper's v2.
"""

from inception.blocks import Block, Branch, Conv, Law, Pool, Scale, SidePlace, Stage, Trunk, square


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


def googlenet(s: Scale) -> Trunk:
    """With the paper's 5x5; torchvision's code has 3x3 there (Options.conv_5x5)."""

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
                        (square(s(big[0]), 1), square(s(big[1]), 5, same=True)),
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


def bn_inception(s: Scale) -> Trunk:
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
                    # Padded as the convolutions beside it: the same grid at every size.
                    Branch("branch_pool", (Pool("max", stride=2, padding=1),)),
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
