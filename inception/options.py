"""Options of a network beyond its name: one for each claim of 1512.00567. No torch here.

None keeps what the named network has. What an option does to the description: rewrites.py.
"""

from dataclasses import dataclass

from inception.errors import ModelError, unknown_name

CHOICES: dict[str, tuple[object, ...]] = {
    "stem": (299, 151, 79),
    "conv_5x5": ("5x5", "two_3x3", "3x3"),
    "inner_activation": ("relu", "linear"),
    "activation": ("relu", "relu6"),
    "reduction": ("parallel", "pool_then_conv", "conv_then_pool"),
    "pool": ("avg", "max"),
    "init": ("variance_scaling", "fixed"),
}
GRID_LETTERS = "abc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Raises ModelError for a value that an option does not know."""

    # The stem by the input size that it was designed for (section 9, table 2): 299 starts with
    # stride 2 and has the first pool, 151 with stride 1 and the pool, 79 with stride 1 and no pool.
    stem: int | None = None
    # The first 7x7 convolution as three 3x3 (table 3, "factorized 7x7").
    factorized_7x7: bool | None = None
    # 5x5: pairs of 3x3 in blocks become one 5x5 (figure 4); two_3x3: each 5x5 becomes such a pair
    # (figure 5); 3x3: one 3x3 replaces each 5x5, as in torchvision's googlenet.
    conv_5x5: str | None = None
    # The grids whose blocks have n x n as 1 x n and n x 1, as letters: a (the finest, 35 x 35 at
    # 299), b (17 x 17), c (8 x 8). The paper recommends b; "" means none.
    asymmetric_blocks: str | None = None
    # n of existing pairs: 7 in v3 and v4, 3 in inception_seed.
    asymmetric_n: int | None = None
    # After the first convolution of a factorized pair (figure 2): relu or linear, with batch norm
    # in both cases.
    inner_activation: str | None = None
    # After every other convolution: relu, or relu6.
    activation: str | None = None
    # How a block reduces its grid (figures 9 and 10): stride-2 convolutions beside a pool; a pool,
    # then convolutions (cheap, but a bottleneck); convolutions, then a pool (expensive).
    reduction: str | None = None
    # The kind of pool in pool branches.
    pool: str | None = None
    # Whether average pools in pool branches include the padding.
    pool_counts_padding: bool | None = None
    # Without batch norm, convolutions have biases (table 3, first row).
    batch_norm: bool | None = None
    # Batch norm in v3's auxiliary head, after the convolution that covers the grid (table 3,
    # "BN-auxiliary").
    side_head_norm: bool | None = None
    # Initial convolutions: variance 2 / fan_in, or a standard deviation of 0.1 as in the older
    # TensorFlow release.
    init: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise unknown_name(f"model.options.{name}", value, [str(c) for c in choices])
        letters = self.asymmetric_blocks
        if letters is not None and (
            set(letters) - set(GRID_LETTERS) or len(set(letters)) < len(letters)
        ):
            raise ModelError(
                f"model.options.asymmetric_blocks: got {letters!r}; letters among a, b and c, each "
                'at most once. Write b for the paper\'s, "" for none.'
            )
        n = self.asymmetric_n
        if n is not None and (n < 3 or n % 2 == 0):
            raise ModelError(
                f"model.options.asymmetric_n: got {n}; an odd number from 3 on, so that the grid "
                "stays. Write 7 for the paper's."
            )
