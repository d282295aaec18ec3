"""The networks published at 224 pixels, stage by stage. Descriptions, no torch here.

googlenet: 1409.4842 with batch norm, under torchvision's names. bn_inception: 1502.03167, which
TensorFlow-slim calls "inception_v2"; Inception-v2 of 1512.00567 is another network.
"""

from inception.blocks import (
    AuxHead,
    Backbone,
    Layers,
    Pool,
    Stage,
    Stages,
    block,
    branch,
    conv,
    pool_branch,
    sequential,
)


def _stem_224(*names: str) -> Stages:
    """224 -> 28x28x192, GoogLeNet's: 7x7, pool, 1x1, 3x3, pool."""
    pool = Pool("max", stride=2, rounds_up=True)
    conv_7x7 = conv(64, 7, stride=2, padding=3)
    bodies: Layers = (conv_7x7, pool, conv(64, 1), conv(192, 3, padding=1), pool)
    return tuple(Stage(name, body) for name, body in zip(names, bodies, strict=True))


def _googlenet_block(
    name: str, c1: int, c3: tuple[int, int], c5: tuple[int, int], pool_channels: int
) -> Stage:
    """c1: channels of the 1x1 branch; c3, c5: of the 1x1 and of the 3x3 or 5x5 after it."""
    pool = Pool("max", padding=1, rounds_up=True)
    return block(
        name,
        sequential("branch1", conv(c1, 1)),
        sequential("branch2", conv(c3[0], 1), conv(c3[1], 3, padding=1)),
        sequential("branch3", conv(c5[0], 1), conv(c5[1], 5, padding=2)),
        sequential("branch4", pool, conv(pool_channels, 1)),
    )


def googlenet() -> Backbone:
    """With the paper's 5x5, where torchvision's code has 3x3 (Options.conv_5x5)."""
    return Backbone(
        stages=(
            *_stem_224("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
            _googlenet_block("inception3a", 64, (96, 128), (16, 32), 32),
            _googlenet_block("inception3b", 128, (128, 192), (32, 96), 64),
            Stage("maxpool3", Pool("max", stride=2, rounds_up=True)),
            _googlenet_block("inception4a", 192, (96, 208), (16, 48), 64),
            _googlenet_block("inception4b", 160, (112, 224), (24, 64), 64),
            _googlenet_block("inception4c", 128, (128, 256), (24, 64), 64),
            _googlenet_block("inception4d", 112, (144, 288), (32, 64), 64),
            _googlenet_block("inception4e", 256, (160, 320), (32, 128), 128),
            Stage("maxpool4", Pool("max", kernel=2, stride=2, rounds_up=True)),
            _googlenet_block("inception5a", 256, (160, 320), (32, 128), 128),
            _googlenet_block("inception5b", 384, (192, 384), (48, 128), 128),
        ),
        aux_heads=(
            AuxHead(name="aux1", after="inception4a"),
            AuxHead(name="aux2", after="inception4d"),
        ),
        input_size=224,
    )


def _bn_block(
    name: str, c1: int, c3: tuple[int, int], dbl: tuple[int, int], pool: tuple[str, int]
) -> Stage:
    """c1, c3: as in _googlenet_block; dbl: channels of the 1x1 and of the two 3x3 after it; pool:
    kind and channels."""
    conv_3x3 = conv(dbl[1], 3, padding=1)
    return block(
        name,
        branch("branch1x1", conv(c1, 1)),
        branch("branch3x3", conv(c3[0], 1), conv(c3[1], 3, padding=1)),
        branch("branch3x3dbl", conv(dbl[0], 1), conv_3x3, conv_3x3),
        pool_branch(pool[1], pool[0]),
    )


def _bn_reduction(name: str, c3: tuple[int, int], dbl: tuple[int, int]) -> Stage:
    """All branches are padded, so that their grids agree at every input size."""
    return block(
        name,
        branch("branch3x3", conv(c3[0], 1), conv(c3[1], 3, stride=2, padding=1)),
        branch(
            "branch3x3dbl",
            conv(dbl[0], 1),
            conv(dbl[1], 3, padding=1),
            conv(dbl[1], 3, stride=2, padding=1),
        ),
        branch("branch_pool", Pool("max", stride=2, padding=1)),
    )


def bn_inception() -> Backbone:
    """Channels: 1502.03167, figure 5."""
    return Backbone(
        stages=(
            *_stem_224("Conv2d_1a_7x7", "maxpool1", "Conv2d_2b_1x1", "Conv2d_2c_3x3", "maxpool2"),
            _bn_block("Mixed_3b", 64, (64, 64), (64, 96), ("avg", 32)),
            _bn_block("Mixed_3c", 64, (64, 96), (64, 96), ("avg", 64)),
            _bn_reduction("Mixed_4a", (128, 160), (64, 96)),
            _bn_block("Mixed_4b", 224, (64, 96), (96, 128), ("avg", 128)),
            _bn_block("Mixed_4c", 192, (96, 128), (96, 128), ("avg", 128)),
            _bn_block("Mixed_4d", 160, (128, 160), (128, 160), ("avg", 96)),
            _bn_block("Mixed_4e", 96, (128, 192), (160, 192), ("avg", 96)),
            _bn_reduction("Mixed_5a", (128, 192), (192, 256)),
            _bn_block("Mixed_5b", 352, (192, 320), (160, 224), ("avg", 128)),
            _bn_block("Mixed_5c", 352, (192, 320), (192, 224), ("max", 128)),
        ),
        input_size=224,
    )
