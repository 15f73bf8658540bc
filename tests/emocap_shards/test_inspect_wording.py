"""Tests that numbers are written in the form in which a person reads them."""

import pytest
from emocap_shards.inspecting.wording import counted, size


@pytest.mark.parametrize(
    ("number_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_999, "1 MB"),
        (1_416_192, "1.42 MB"),
        (5 * 10**12, "5 TB"),
        (999_900 * 10**9, "1,000 TB"),
        (2**63 - 1, "9,223,372 TB"),
    ],
)
def test_sizes_are_plain_numbers(number_bytes, text):
    assert size(number_bytes) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (1024, "1,024 shards")])
def test_a_noun_has_the_number_of_its_count(number, text):
    assert counted(number, "shard") == text
