"""Options as rewrites of a description: stages in, stages out. No torch here.

A rewritten branch keeps its name, so names say where a layer stands, not which kernel it has.
"""

from collections.abc import Callable
from dataclasses import replace

from inception.blocks import Block, Branch, Conv, Layer, Pair, Pool, Scale, Stage
from inception.options import LETTERS

Stages = tuple[Stage, ...]
Layers = tuple[Layer, ...]
STEM_V3 = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
STEM_7X7 = "Conv2d_1a_7x7"


def with_stem(stages: Stages, size: int) -> Stages | None:
    """The stem for inputs of 299, 151 or 79 px (table 2); None where there is no such pool."""
    first, *rest = stages
    assert isinstance(first.body, Conv)
    if size == 299:
        return stages
    begun = (replace(first, body=replace(first.body, stride=1)), *rest)
    if size == 151:
        return begun
    plain = next(i for i, stage in enumerate(begun) if not isinstance(stage.body, Conv))
    if not isinstance(begun[plain].body, Pool):
        return None
    return begun[:plain] + begun[plain + 1 :]


def split_7x7(stages: Stages, scale: Scale) -> Stages:
    """The first 7x7 as three 3x3, of half its channels, half and all (table 1)."""
    first, *rest = stages
    conv = first.body
    if not isinstance(conv, Conv) or conv.kernel != (7, 7):
        return stages
    pad = (1, 1) if conv.padding != (0, 0) else (0, 0)
    half = scale(32)
    names = STEM_V3 if first.name == STEM_7X7 else tuple(f"{first.name}_{i}" for i in (1, 2, 3))
    three = (
        Conv(half, (3, 3), conv.stride, pad),
        Conv(half, (3, 3), 1, pad),
        Conv(conv.channels, (3, 3), 1, (1, 1)),
    )
    return (*(Stage(n, c) for n, c in zip(names, three, strict=True)), *rest)


def join_7x7(stages: Stages) -> Stages:
    """The first three 3x3 as one 7x7, where the network begins with them."""
    begin = [stage.body for stage in stages[:3]]
    if not all(isinstance(body, Conv) and body.kernel == (3, 3) for body in begin):
        return stages
    first, last = begin[0], begin[2]
    assert isinstance(first, Conv)
    assert isinstance(last, Conv)
    name = STEM_7X7 if stages[0].name == STEM_V3[0] else stages[0].name
    return (Stage(name, Conv(last.channels, (7, 7), first.stride)), *stages[3:])


def with_5x5(stages: Stages, kind: str) -> Stages:
    """5x5: pairs of 3x3 as one 5x5; two_3x3: the other way; 3x3: one 3x3 in its place."""

    def rewrite(layers: Layers) -> Layers:
        if kind == "5x5":
            return _pairwise(layers, lambda a, b: (_joined(a, b),) if _is_square(a) else (a, b))
        made: list[Layer] = []
        for layer in layers:
            if isinstance(layer, Conv) and layer.kernel == (5, 5):
                inner = replace(layer, kernel=(3, 3), padding=(1, 1))
                made += [inner] if kind == "3x3" else [replace(inner, stride=1), inner]
            else:
                made.append(layer)
        return tuple(made)

    return _map_branches(stages, lambda _, layers: rewrite(layers))


def with_asymmetric(stages: Stages, blocks: str | None, n: int | None) -> Stages:
    """Squares as 1 x k and k x 1 in these blocks, pairs of lines as squares in the others; n: the
    length of the lines that the network has. blocks None: where it has them."""
    letters = _letters(stages)

    def split(layers: Layers) -> Layers:
        made: list[Layer] = []
        for layer in layers:
            if isinstance(layer, Conv) and _is_square(layer) and layer.stride == 1:
                k, pad = layer.kernel[0], layer.padding[0]
                made += [
                    replace(layer, kernel=(1, k), padding=(0, pad)),
                    replace(layer, kernel=(k, 1), padding=(pad, 0)),
                ]
            else:
                made.append(layer)
        return tuple(made)

    def rewrite(stage: Stage, layers: Layers) -> Layers:
        if n is not None:
            layers = _pairwise(
                layers, lambda a, b: (a, b) if _is_square(a) else (_resized(a, n), _resized(b, n))
            )
        if blocks is None:
            return layers
        if letters.get(stage.name, "-") in blocks:
            return split(layers)
        return _pairwise(layers, lambda a, b: (a, b) if _is_square(a) else (_joined(a, b),))

    return _map_branches(stages, rewrite)


def with_linear_inside(stages: Stages) -> Stages:
    """No activation after the first convolution of each factorized pair (figure 2)."""
    return _map_branches(
        stages, lambda _, layers: _pairwise(layers, lambda a, b: (replace(a, is_linear=True), b))
    )


def with_reduction(stages: Stages, kind: str) -> Stages:
    """Strided blocks as a pool and then convolutions, or the other way round (figure 9)."""

    def rewrite(block: Block) -> Block:
        pool = next((p for branch in block.branches for p in _shrinking_pools(branch)), None)
        if pool is None:
            return block
        branches = []
        for branch in block.branches:
            if not any(isinstance(x, Conv) and x.stride > 1 for x in branch.layers):
                branches.append(branch)
                continue
            flat = tuple(
                replace(x, stride=1, padding=(x.kernel[0] // 2, x.kernel[1] // 2))
                if isinstance(x, Conv) and x.stride > 1
                else x
                for x in branch.layers
            )
            layers = (pool, *flat) if kind == "pool_then_conv" else (*flat, pool)
            branches.append(replace(branch, layers=layers))
        return replace(block, branches=tuple(branches))

    return _map_blocks(stages, lambda _, block: rewrite(block))


def has_reductions(stages: Stages) -> bool:
    """Whether there are blocks with a stride."""
    return any(isinstance(s.body, Block) and _is_strided(s.body) for s in stages)


def has_lines(stages: Stages) -> bool:
    """Whether there are pairs of 1 x n and n x 1."""
    found = False

    def look(a: Conv, b: Conv) -> Layers:
        nonlocal found
        found = found or not _is_square(a)
        return (a, b)

    _map_branches(stages, lambda _, layers: _pairwise(layers, look))
    return found


def with_pools(stages: Stages, kind: str | None, counts_padding: bool | None) -> Stages:
    """The pool branches' kind, and whether their averages count the padding."""

    def rewrite(layer: Layer) -> Layer:
        if not isinstance(layer, Pool) or layer.stride > 1:
            return layer
        counts = layer.counts_padding if counts_padding is None else counts_padding
        return replace(layer, kind=kind or layer.kind, counts_padding=counts)

    return _map_branches(stages, lambda _, layers: tuple(rewrite(layer) for layer in layers))


def without_norm(stages: Stages) -> Stages:
    """Every convolution with a bias in place of batch norm."""

    def bare(layer: Layer) -> Layer:
        if isinstance(layer, Conv):
            return replace(layer, has_norm=False)
        if isinstance(layer, Pool):
            return layer
        return replace(layer, outputs=tuple(replace(c, has_norm=False) for c in layer.outputs))

    inside = _map_branches(stages, lambda _, layers: tuple(bare(layer) for layer in layers))
    return tuple(
        replace(stage, body=replace(stage.body, has_norm=False))
        if isinstance(stage.body, Conv)
        else stage
        for stage in inside
    )


def _letters(stages: Stages) -> dict[str, str]:
    """a, b or c of each block: its grid, the last one being c. A reduction belongs to the grid
    that it shrinks."""
    groups: list[list[str]] = [[]]
    for stage in stages:
        if isinstance(stage.body, Block):
            groups[-1].append(stage.name)
        is_shrinking = _is_strided(stage.body) if isinstance(stage.body, Block) else True
        if is_shrinking:
            groups.append([])
    grids = [group for group in groups if group][-len(LETTERS) :]
    named = zip(LETTERS[-len(grids) :], grids, strict=True)
    return {name: letter for letter, group in named for name in group}


def _is_strided(block: Block) -> bool:
    return any(
        isinstance(layer, Conv | Pool) and layer.stride > 1
        for branch in block.branches
        for layer in branch.layers
    )


def _shrinking_pools(branch: Branch) -> list[Pool]:
    return [layer for layer in branch.layers if isinstance(layer, Pool) and layer.stride > 1]


def _map_blocks(stages: Stages, rewrite: Callable[[Stage, Block], Block]) -> Stages:
    return tuple(
        replace(s, body=rewrite(s, s.body)) if isinstance(s.body, Block) else s for s in stages
    )


def _map_branches(stages: Stages, rewrite: Callable[[Stage, Layers], Layers]) -> Stages:
    return _map_blocks(
        stages,
        lambda stage, block: replace(
            block,
            branches=tuple(
                Branch(branch.name, rewrite(stage, branch.layers), branch.law)
                for branch in block.branches
            ),
        ),
    )


def _pairwise(layers: Layers, rewrite: Callable[[Conv, Conv], Layers]) -> Layers:
    """Rewrites each factorized pair of a chain, taken from its beginning."""
    made: list[Layer] = []
    i = 0
    while i < len(layers):
        a, b = layers[i], layers[i + 1] if i + 1 < len(layers) else None
        if isinstance(a, Conv) and isinstance(b, Conv) and _is_pair(a, b):
            made += rewrite(a, b)
            i += 2
        else:
            made.append(a)
            i += 1
    return tuple(made)


def _is_pair(a: Conv, b: Conv) -> bool:
    """Two 3x3, or 1 x n and n x 1 in either order: one larger filter, factorized."""
    if a.stride > 1:
        return False
    is_crossing = a.kernel == b.kernel[::-1] and 1 in a.kernel and a.kernel != (1, 1)
    return is_crossing or (a.kernel == b.kernel == (3, 3))


def _is_square(conv: Conv) -> bool:
    return conv.kernel[0] == conv.kernel[1] > 1


def _joined(a: Conv, b: Conv) -> Conv:
    """One convolution that sees what the pair sees."""
    kernel: Pair = (a.kernel[0] + b.kernel[0] - 1, a.kernel[1] + b.kernel[1] - 1)
    padding: Pair = (a.padding[0] + b.padding[0], a.padding[1] + b.padding[1])
    return replace(b, kernel=kernel, padding=padding)


def _resized(line: Conv, n: int) -> Conv:
    """The line with length n."""
    height, width = (1, n) if line.kernel[0] == 1 else (n, 1)
    return replace(line, kernel=(height, width), padding=(height // 2, width // 2))
