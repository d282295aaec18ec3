"""The learning rate at the edges of a schedule."""

import pytest

from inception.errors import ModelError
from inception.schedule import learning_rate


def test_run_that_is_all_warm_up_ends_at_zero() -> None:
    assert learning_rate(2.0, name="cosine", lr=0.4, epochs=2.0, warmup_epochs=2.0) == 0.0


def test_rate_past_the_end_stays_at_zero() -> None:
    assert learning_rate(11.0, name="cosine", lr=0.4, epochs=10.0) == pytest.approx(0.0)


def test_wrong_name_says_what_was_meant() -> None:
    with pytest.raises(ModelError, match=r"got 'cosin'; .* Did you mean cosine\?"):
        learning_rate(0.0, name="cosin", lr=1.0, epochs=1.0)
