"""Filters that find a run by its name or URL."""

import re

import pytest
from mlflow.utils.search_utils import SearchUtils

from orchestration.errors import JobError
from orchestration.tracking.table import _quoted


@pytest.mark.parametrize("value", ["digits-1", "it's", 'a "b"', "s3://runs/it's", "50 % off; --"])
def test_mlflow_reads_a_quoted_value_as_it_was(value: str) -> None:
    [clause] = SearchUtils.parse_search_filter(f"attributes.run_name = {_quoted(value)}")
    assert clause["value"] == value


def test_a_value_with_both_kinds_of_quotes_is_one_line() -> None:
    with pytest.raises(JobError, match=r"^RUN: got .+; .+\. Give the run's id\.$") as error:
        _quoted("""it's "b" """)
    assert re.search(r"""it\\?'s "b" """, str(error.value))
