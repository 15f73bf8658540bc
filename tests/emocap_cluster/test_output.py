import io

import pytest
from emocap_cluster.output import Named
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.text(st.sampled_from("ab\n"), max_size=5), max_size=8))
def test_every_whole_line_has_the_name_however_it_was_written(parts: list[str]) -> None:
    target = io.StringIO()
    named = Named(target, "[rank 3] ")
    for part in parts:
        assert named.write(part) == len(part)
    whole = "".join(parts).split("\n")[:-1]
    assert target.getvalue() == "".join(f"[rank 3] {line}\n" for line in whole)


def test_the_file_below_is_still_there_for_stack_dumps(capfd: pytest.CaptureFixture[str]) -> None:
    import sys

    assert Named(sys.__stderr__, "").fileno() == 2  # type: ignore[arg-type]
