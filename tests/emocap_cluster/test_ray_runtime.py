"""The lines that a rank under Ray says of its progress."""

from emocap_cluster.runtime import EVERY_S, Pace


def test_a_line_tells_the_step_the_note_and_the_time_that_is_left() -> None:
    pace = Pace()
    pace.line(0, 100, "loss 5.0", 0.0)
    assert pace.line(25, 100, "loss 4.0", 50.0) == "step 25/100 · loss 4.0 · 2:30 left"


def test_the_first_line_does_not_guess_how_long_it_takes() -> None:
    assert Pace().line(5, 100, "loss 5.0", 0.0) == "step 5/100 · loss 5.0"


def test_lines_keep_their_distance_but_the_last_step_is_always_told() -> None:
    pace = Pace()
    pace.line(1, 100, "", 0.0)
    assert pace.line(2, 100, "", EVERY_S / 2) is None
    assert pace.line(100, 100, "", EVERY_S / 2) is not None
