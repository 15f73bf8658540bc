import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report, ZeroShot


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(tmp_path / "run"))


def report(step: int) -> Report:
    seen = ZeroShot("faces", ("joy", "fear"), ((3, 1), (0, 4)), 0.875, 0.875, 0.5, 0.5)
    return Report("tiny", "run", step, 12.5, 2, 80.0, None, "abc", "sqlite:///mlflow.db", seen)


def test_a_new_folder_belongs_to_no_run(folder: RunFolder, tiny_config: Config) -> None:
    assert folder.run_id(tiny_config) is None
    assert folder.report(1) is None


def test_a_later_start_of_the_same_run_finds_its_tracker_run(folder: RunFolder, tiny_config: Config) -> None:
    folder.begin(tiny_config, "abc")
    assert folder.run_id(tiny_config) == "abc"
    assert RunFolder(open_store(folder.store.url)).run_id(tiny_config) == "abc"


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 9},
        {"cluster__threads_per_rank": 3},
        {"checkpoint__every_steps": 7},
        {"tracking__every_steps": 7},
        {"evaluation__url": None},
        {"data__workers": 2},
        {"data__prefetch": 2},
        {"data__error_budget": 2},
        {"objective__backend": "reference"},
    ],
)
def test_what_does_not_decide_what_is_learned_may_change(
    folder: RunFolder, tiny_config: Config, change: dict[str, Any]
) -> None:
    folder.begin(tiny_config, "abc")
    assert folder.run_id(changed(tiny_config, **change)) == "abc"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("global_batch", 16),
        ("optimizer.lr", 0.5),
        ("data.flip", 0.25),
        ("data.shuffle_window", 3),
        ("model.embedding", 24),
        ("model.image.options.depth", 2),
        ("model.text.lengths.global", 17),
        ("objective.global", 0.25),
        ("engine.precision", "bf16"),
    ],
)
def test_what_decides_what_is_learned_may_not_change_and_is_named(
    folder: RunFolder, tiny_config: Config, key: str, value: Any
) -> None:
    folder.begin(tiny_config, "abc")
    with pytest.raises(ConfigError) as caught:
        folder.run_id(changed(tiny_config, **{key.replace(".", "__"): value}))
    assert f"{key}=" in str(caught.value)
    assert str(value) in str(caught.value)
    assert folder.store.url in str(caught.value)


def test_a_setting_that_is_new_or_gone_is_named(folder: RunFolder, tiny_config: Config) -> None:
    folder.begin(tiny_config, "abc")
    options = {**tiny_config.model.image.options, "drop_rate": 0.1}
    with pytest.raises(ConfigError, match=r"model\.image\.options\.drop_rate=None, now it is 0\.1"):
        folder.run_id(changed(tiny_config, model__image__options=options))


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda _: b"{}", lambda _: b"[]"])
def test_a_damaged_run_json_is_an_error_that_names_it(
    folder: RunFolder, tiny_config: Config, harm: Callable[[bytes], bytes]
) -> None:
    folder.begin(tiny_config, "abc")
    folder.store.put("run.json", harm(folder.store.read("run.json")))
    with pytest.raises(ConfigError, match=r"run\.json"):
        folder.run_id(tiny_config)


def test_the_report_of_a_done_run_comes_back_and_one_of_fewer_steps_does_not_count(folder: RunFolder) -> None:
    folder.conclude(report(8))
    assert folder.report(8) == report(8)
    assert folder.report(7) == report(8)
    assert folder.report(9) is None


def test_secrets_are_in_no_file(folder: RunFolder, tiny_config: Config) -> None:
    folder.begin(tiny_config.with_interpolations({("url",): "${oc.env:PLACE}"}), "abc")
    text = folder.store.read("run.json").decode()
    assert json.loads(text)["config"]["url"] == "${oc.env:PLACE}"
    assert tiny_config.url not in text
