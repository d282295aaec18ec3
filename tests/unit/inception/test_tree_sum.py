"""The order of a sum, with strings for numbers and parentheses for rounding."""

from hypothesis import given
from hypothesis import strategies as st

from inception.tree_sum import Node, TreeSum

owners = st.integers(1, 8).flatmap(
    lambda world_size: st.tuples(
        st.lists(st.integers(0, world_size - 1), min_size=1, max_size=40), st.just(world_size)
    )
)


def add(left: str, right: str) -> str:
    return f"({left}+{right})"


def sum_over_ranks(tree: TreeSum) -> str:
    """As StepReduction sums: each rank its own, in its order; then all their partial sums."""
    parts: dict[Node, str] = {}
    for rank in range(tree.world_size):
        waiting: dict[Node, str] = {}
        for index in tree.order(rank):
            value = str(index)
            left_halves, node = tree.joins(index, rank)
            for left in left_halves:
                value = add(waiting.pop(left), value)
            waiting[node] = value
            assert len(waiting) <= len(tree.parts[rank]) + len(tree.owners).bit_length()
        assert set(waiting) == set(tree.parts[rank])
        parts |= waiting
    return tree.join(parts, add)


@given(owners)
def test_whoever_holds_them_the_sum_has_the_same_parentheses(given: tuple[list[int], int]) -> None:
    held, world_size = given
    alone = TreeSum.of(len(held), 1)
    tree = TreeSum(tuple(held), world_size)
    assert sum_over_ranks(tree) == sum_over_ranks(alone)
    assert sorted(j for rank in range(world_size) for j in tree.order(rank)) == [*range(len(held))]


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_power_of_two_of_ranks_has_one_partial_sum_each(k: int, m: int) -> None:
    tree = TreeSum.of(2 ** (k + m), 2**k)
    assert [len(parts) for parts in tree.parts] == [1] * 2**k


def test_the_lowest_bit_is_joined_last() -> None:
    assert sum_over_ranks(TreeSum.of(8, 1)) == "(((0+4)+(2+6))+((1+5)+(3+7)))"
    assert sum_over_ranks(TreeSum.of(3, 2)) == "((0+2)+1)"
