import logging

import pytest
from emocap_cluster.errors import RankFailed
from emocap_shards.errors import ManifestError

from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.logs import OURS, show_logs
from emocap_pretrain.terminal import errors_as_lines


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def code_of(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, errors_as_lines(debug=False):
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("steps=0 is too few."), 2),
        (TrainingError("step 3: loss is not finite."), 1),
        (ManifestError("no dataset at x."), 1),
    ],
)
def test_an_error_of_this_project_is_one_line_and_an_exit_code(capsys, error, code):
    assert code_of(error) == code
    shown = capsys.readouterr()
    assert shown.err == f"error: {error}\n"
    assert shown.out == ""


def test_a_job_that_failed_over_a_wrong_value_ends_like_the_value(capsys):
    assert code_of(RankFailed("rank 1: bad", cause=ConfigError("bad"))) == 2
    assert code_of(RankFailed("rank 1: lost", cause=TrainingError("lost"))) == 1
    assert code_of(RankFailed("rank 1 is gone")) == 1
    assert capsys.readouterr().err == "error: rank 1: bad\nerror: rank 1: lost\nerror: rank 1 is gone\n"


def test_ctrl_c_prints_how_to_resume(capsys):
    assert code_of(KeyboardInterrupt()) == 130
    assert "start the same command again" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors_as_lines(debug=False):
        raise ZeroDivisionError


def test_with_debug_an_error_of_this_project_keeps_its_traceback():
    with pytest.raises(ConfigError), errors_as_lines(debug=True):
        raise ConfigError("bad")


def test_a_failed_job_names_its_rank_and_only_rank_0_prints_a_wrong_value(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert code_of(TrainingError("lost")) == 1
    assert capsys.readouterr().err == "error: rank 1: lost\n"
    assert code_of(ConfigError("bad")) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert code_of(ConfigError("bad")) == 2
    assert capsys.readouterr().err == "error: rank 0: bad\n"


def test_nothing_is_printed_without_an_error(capsys):
    with errors_as_lines(debug=False):
        pass
    assert capsys.readouterr() == ("", "")


def test_log_records_of_this_project_are_shown():
    show_logs()
    assert all(logging.getLogger(f"{name}.part").isEnabledFor(logging.INFO) for name in OURS)
