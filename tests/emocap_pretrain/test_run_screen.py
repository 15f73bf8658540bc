"""Tests the lines of progress that are printed while a job runs."""

import io

import pytest
from rich.progress import Progress

from emocap_pretrain import terminal
from emocap_pretrain.terminal import EVERY_S, Pace, Screen, Terminal, duration, screen


def test_a_line_has_the_step_the_note_and_the_remaining_time() -> None:
    pace = Pace()
    pace.line(0, 100, "loss 5.0", 0.0)
    assert pace.line(25, 100, "loss 4.0", 50.0) == "step 25/100 · loss 4.0 · 2:30 left"


def test_the_first_line_does_not_guess_how_long_it_takes() -> None:
    assert Pace().line(5, 100, "loss 5.0", 0.0) == "step 5/100 · loss 5.0"


def test_lines_have_a_minimum_interval_but_the_last_step_is_always_printed() -> None:
    pace = Pace()
    pace.line(1, 100, "", 0.0)
    assert pace.line(2, 100, "", EVERY_S / 2) is None
    assert pace.line(100, 100, "", EVERY_S / 2) is not None


def test_the_remaining_time_is_estimated_anew_after_a_restart() -> None:
    pace = Pace()
    pace.line(10, 100, "", 0.0)
    pace.line(50, 100, "", 40.0)
    assert pace.line(40, 100, "", 200.0) == "step 40/100 · "
    assert pace.line(50, 100, "", 220.0) == "step 50/100 ·  · 1:40 left"


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (150, "2:30"), (3723, "1:02:03")])
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_in_a_terminal_one_line_moves_and_fits_80_columns() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=80)
    with Progress(*terminal.columns(), console=console) as bar:
        shown = Screen(bar)
        for step in (5, 20, 10):
            shown.show_progress(step, 10_000, "loss 4.1234 · 123456 samples/s")
        bar.refresh()
    last = out.getvalue().rstrip().rpartition("\r")[2]
    assert "step 10/10000 · loss 4.1234 · 123456 samples/s" in last
    assert len(bar.tasks) == 1


def test_in_a_terminal_a_bar_moves_already_before_the_first_step() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=80)
    with Progress(*terminal.columns(), console=console) as bar:
        Screen(bar)
        bar.refresh()
    assert "before the first step" in out.getvalue()


def test_the_remaining_time_is_not_shown_while_it_is_unknown() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=80)
    with Progress(*terminal.columns(), console=console) as bar:
        Screen(bar).show_progress(5, 10, "loss 4.1")
        bar.refresh()
    assert "step 5/10" in out.getvalue()
    assert "left" not in out.getvalue()


def test_in_a_log_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(file=out, force_terminal=False, soft_wrap=True))
    with screen() as shown:
        shown.say("a line with [brackets]")
        shown.show_progress(1, 2, "loss 1.0")
    assert out.getvalue() == "a line with [brackets]\nstep 1/2 · loss 1.0\n"
