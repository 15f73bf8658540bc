import re
from dataclasses import replace

import pytest

from benchmarks.__main__ import SUITES, main
from benchmarks.harness import record, tables
from benchmarks.harness.machine import REPOSITORY, Occasion, occasion, versions
from benchmarks.harness.record import Spread, measured, ratios, spread
from benchmarks.harness.rounds import Skipped, complete, in_rounds
from benchmarks.harness.suite import RECORDS

OCCASION = Occasion("a CPU", 0.5, "0123", "2026-01-01", "a test")
ABOUT = {"what": "speed", "contender": "somebody", "unit": "s", "versions": {"python": "3.11"}}


def a_measurement(readings=(1.0, 2.0, 3.0), **rest):
    return measured(OCCASION, readings, **ABOUT, **{"setting": {"rows": 8, "sorted": True, "seed": None}, **rest})


def test_a_spread_is_computed_from_the_readings():
    assert spread([4.0, 1.0, 2.0, 3.0, 10.0]) == Spread(1.0, 3.0, 2.0, 4.0)
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 2.0)


def test_ratios_compare_readings_of_the_same_round():
    # The machine is half as fast in the second round: the ratio does not notice.
    assert ratios([3.0, 6.0], [1.0, 2.0]) == [3.0, 3.0]


def test_every_contender_reads_once_in_a_round_and_another_one_begins_each_time():
    seen = []
    calls = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "abcd"}
    taken = in_rounds({name: calls[name] for name in "abc"}, {"d": calls["d"]}, rounds=2)
    assert "".join(seen) == "abcdbcad"
    assert taken == {"a": [1.0, 7.0], "b": [2.0, 5.0], "c": [3.0, 6.0], "d": [4.0, 8.0]}


def test_a_skipped_contender_takes_no_further_part():
    tries = iter(range(10))
    calls = {"steady": lambda: 1.0, "fails": lambda: Skipped("no memory") if next(tries) == 1 else 1.0}
    taken = in_rounds(calls, rounds=4)
    assert taken == {"steady": [1.0] * 4, "fails": Skipped("no memory")}
    assert next(tries) == 2
    with pytest.raises(ValueError, match="fails: no memory"):
        complete(taken)


def test_a_record_survives_its_file(tmp_path):
    over, more = {"over another": [0.5, 0.5, 0.6]}, {"cpu_s": spread([1.0, 2.0]), "bytes": 5, "said": {"right": True}}
    lines = [a_measurement(ratios=over, more=more), a_measurement(Skipped("no memory"), setting={"rows": 9})]
    record.append(tmp_path / "made" / "speed.jsonl", lines)
    assert record.read(tmp_path / "made" / "speed.jsonl") == lines
    assert lines[0].repetitions == 3
    assert lines[0].spread_of("cpu_s").median == 1.5


def test_the_last_of_equal_measurements_counts(tmp_path):
    first, other = a_measurement(), a_measurement(setting={"rows": 9})
    again = replace(first, date="2026-02-02", commit="4567")
    record.append(tmp_path / "speed.jsonl", [first, other, again])
    assert record.read(tmp_path / "speed.jsonl") == [again, other]


def test_a_spread_that_a_record_does_not_have_is_named():
    with pytest.raises(ValueError, match="speed: the record of somebody has no cpu_s"):
        a_measurement().spread_of("cpu_s")
    with pytest.raises(ValueError, match="has no value"):
        _ = a_measurement(Skipped("no memory")).median


def test_an_occasion_says_where_when_and_how():
    about = occasion("a GPU")
    assert about.device == "a GPU"
    assert about.load_before >= 0
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", about.date)
    assert about.command.startswith("python ")
    assert versions(["pytest", "no-such-package"]).items() >= {
        ("pytest", pytest.__version__),
        ("no-such-package", None),
    }


def test_a_plain_table_shows_everything_that_was_measured():
    text = tables.plain(
        [a_measurement(ratios={"over another": [0.5]}, more={"bytes": 5}), a_measurement(Skipped("why"))]
    )
    at = "| speed | somebody | rows=8 sorted=yes |"
    assert f"{at} 2 s | 1.5 to 2.5 | over another: 0.5 (0.5 to 0.5) | bytes 5 |" in text
    assert f"{at} skipped: why |" in text


def test_progress_fits_a_terminal():
    long = a_measurement(setting={f"{number}" * 9: 0.1 for number in range(20)}, ratios={"over another": [0.5]})
    for line in (long, replace(long, value=None, skipped="x" * 200)):
        assert len(tables.progress(line, "a note")) == 79


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="<!-- stream -->"):
        tables.insert("No markers.", "stream", "| table |")


@pytest.mark.parametrize("name", SUITES)
def test_records_in_the_docs_give_tables_and_the_pages_hold_them(name):
    suite = SUITES[name]()
    reports = list(suite.records(RECORDS))
    assert reports or suite.page is None
    for report, lines in reports:
        assert {line.what for line in lines} <= set(report.whats)
        assert report.markdown(lines)
    if suite.page:
        text = (REPOSITORY / "docs" / suite.page).read_text()
        assert suite.refreshed(text, RECORDS) == text


def test_an_unknown_suite_is_one_line(capsys):
    assert main(["engine", "measure"]) == 2
    suites = "kernels, shards, cluster, inference, finetune, generation, evaluation, loader, captioning, checking"
    assert capsys.readouterr().err == f"error: the first word must be a suite: {suites}.\n"


@pytest.mark.parametrize("name", SUITES)
def test_help_lists_the_commands_of_a_suite(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in (*SUITES[name]().commands, "plot", "table"))
