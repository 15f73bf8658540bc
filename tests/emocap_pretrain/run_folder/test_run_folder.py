import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.config.stored import leaves
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import RUN, RunDocument
from emocap_pretrain.run_folder.folder import RUN_FILE, RunFolder
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import Baseline, ClassValues, ConfusionMatrix, Score, TaskResult


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(tmp_path / "run"))


def report(step: int) -> Report:
    seen = TaskResult(
        "zero_shot",
        8,
        (Score("uar", "prompted UAR", 0.875, Baseline("chance", 0.5, "2 classes")),),
        (ClassValues("recall", "prompted recall", ("joy", "fear"), (0.75, 1.0), (4, 4)),),
        (ConfusionMatrix("confusion", "Prompted", ("joy", "fear"), ((3, 1), (0, 4))),),
        "faces",
    )
    return Report("tiny", "run", step, 12.5, 2, 80.0, None, "abc", "sqlite:///mlflow.db", results=(seen,))


def test_a_new_folder_has_no_run_and_no_report(folder: RunFolder, tiny_config: Config) -> None:
    assert folder.run_id(tiny_config) is None
    assert folder.report(1) is None


def test_a_later_attempt_of_the_same_run_finds_its_tracker_run(folder: RunFolder, tiny_config: Config) -> None:
    folder.write_run(tiny_config, "abc")
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
def test_settings_that_do_not_affect_what_is_learned_may_change(
    folder: RunFolder, tiny_config: Config, change: dict[str, Any]
) -> None:
    folder.write_run(tiny_config, "abc")
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
def test_settings_that_affect_what_is_learned_must_not_change_and_are_named(
    folder: RunFolder, tiny_config: Config, key: str, value: Any
) -> None:
    folder.write_run(tiny_config, "abc")
    with pytest.raises(ConfigError) as caught:
        folder.run_id(changed(tiny_config, **{key.replace(".", "__"): value}))
    assert f"{key}=" in str(caught.value)
    assert str(value) in str(caught.value)
    assert folder.store.url in str(caught.value)


def test_a_setting_that_was_added_is_named(folder: RunFolder, tiny_config: Config) -> None:
    folder.write_run(tiny_config, "abc")
    options = {**tiny_config.model.image.options, "drop_rate": 0.1}
    with pytest.raises(ConfigError, match=r"model\.image\.options\.drop_rate=nothing, now it is 0\.1"):
        folder.run_id(changed(tiny_config, model__image__options=options))


def rewrite(folder: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the stored settings to those of another version."""
    body = json.loads(folder.store.read("run.json"))
    change(body["config"])
    folder.store.put("run.json", json.dumps(body).encode())


def test_a_setting_that_is_newer_than_the_run_counts_with_its_default(folder: RunFolder, tiny_config: Config) -> None:
    folder.write_run(tiny_config, "abc")
    rewrite(folder, lambda config: config["objective"].pop("known_positives"))
    assert folder.run_id(tiny_config) == "abc"
    with pytest.raises(ConfigError, match=r"with objective\.known_positives=True, now it is False: put it back"):
        folder.run_id(changed(tiny_config, objective__known_positives=False))


def test_every_setting_with_a_default_may_be_newer_than_the_run(folder: RunFolder, tiny_config: Config) -> None:
    """A missing setting must count with its default, and must not be compared as None."""
    given = leaves(tiny_config.model_dump(mode="json", exclude_unset=True))
    for key in leaves(tiny_config.stored()).keys() - given.keys():
        *sections, last = key.split(".")

        def remove(config: dict[str, Any], sections: list[str] = sections, last: str = last) -> None:
            for section in sections:
                config = config[section]
            del config[last]

        folder.write_run(tiny_config, "abc")
        rewrite(folder, remove)
        assert folder.run_id(tiny_config) == "abc", key


def test_a_run_of_version_0_1_0_which_stored_no_schema_is_resumed(folder: RunFolder, tiny_config: Config) -> None:
    folder.store.put("run.json", json.dumps({"run_id": "abc", "config": tiny_config.stored()}).encode())
    assert folder.run_id(tiny_config) == "abc"


@pytest.mark.parametrize(("key", "refused"), [("optimizer", True), ("tracking", False)])
def test_a_newer_setting_that_was_set_is_refused_if_it_affects_what_is_learned(
    folder: RunFolder, tiny_config: Config, key: str, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def later(config: dict[str, Any]) -> None:
        config[key]["novel"] = 3
        config["set"].append(f"{key}.novel")

    folder.write_run(tiny_config, "abc")
    rewrite(folder, later)
    if refused:
        with pytest.raises(ConfigError, match=r"optimizer\.novel=3, which this version does not know"):
            folder.run_id(tiny_config)
        return
    assert folder.run_id(tiny_config) == "abc"
    assert "tracking.novel is unknown to this version and is ignored" in caplog.text


def test_a_newer_setting_that_was_not_set_is_ignored(folder: RunFolder, tiny_config: Config) -> None:
    folder.write_run(tiny_config, "abc")
    rewrite(folder, lambda config: config["optimizer"].update(novel=3))
    assert folder.run_id(tiny_config) == "abc"


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"data": [1]}, {"schema": "x"}, {"schema": 10**9, "set": 3}])
def test_settings_of_another_shape_are_an_error_in_one_line(
    folder: RunFolder, tiny_config: Config, config: dict[str, Any]
) -> None:
    folder.store.put("run.json", json.dumps({"run_id": "abc", "config": config}).encode())
    with pytest.raises(ConfigError) as caught:
        folder.run_id(tiny_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda _: b"{}", lambda _: b"[]"])
def test_a_damaged_run_json_is_an_error_that_names_it(
    folder: RunFolder, tiny_config: Config, harm: Callable[[bytes], bytes]
) -> None:
    folder.write_run(tiny_config, "abc")
    folder.store.put("run.json", harm(folder.store.read("run.json")))
    with pytest.raises(ConfigError, match=r"run\.json"):
        folder.run_id(tiny_config)


def test_the_report_of_a_finished_run_is_read_back_and_one_of_fewer_steps_does_not_count(folder: RunFolder) -> None:
    folder.write_report(report(8))
    assert folder.report(8) == report(8)
    assert folder.report(7) == report(8)
    assert folder.report(9) is None


def test_a_warm_start_is_recorded_without_its_login_and_is_absent_in_older_files(
    folder: RunFolder, tiny_config: Config
) -> None:
    assert folder.warm_start() is None
    folder.write_run(tiny_config, "abc", warm_start=Parent("s3://anna:sesame@bucket/faces", 1200, "def", "0123"))
    assert folder.warm_start() == Parent("s3://***@bucket/faces", 1200, "def", "0123")
    tree = json.loads(folder.store.read("run.json"))
    del tree["warm_start"]
    folder.store.put("run.json", json.dumps(tree).encode())
    assert folder.warm_start() is None
    folder.store.put("run.json", json.dumps({**tree, "warm_start": {"url": "s3://b/r", "step": -1}}).encode())
    with pytest.raises(ConfigError, match=r"run\.json cannot be read \(warm_start\.step"):
        folder.run_id(tiny_config)


def test_no_file_holds_a_secret(folder: RunFolder, tiny_config: Config) -> None:
    folder.write_run(tiny_config.with_interpolations({("url",): "${oc.env:PLACE}"}), "abc")
    text = folder.store.read("run.json").decode()
    assert json.loads(text)["config"]["url"] == "${oc.env:PLACE}"
    assert tiny_config.url not in text


@pytest.fixture
def begun(folder: RunFolder, tiny_config: Config) -> RunFolder:
    folder.write_run(tiny_config, "abc")
    return folder


def at(path: Path) -> RunFolder:
    return RunFolder(open_store(path))


def test_a_copy_of_a_folder_is_another_run_and_the_folder_itself_is_not(begun: RunFolder, tmp_path: Path) -> None:
    here = Path(begun.store.url)
    shutil.copytree(here, tmp_path / "copy")
    assert at(tmp_path / "copy").copied_from() == "abc"
    assert begun.copied_from() == ""
    assert [path.name for path in here.iterdir()] == ["run.json"], "the check leaves no file in the folder"


def test_an_attempt_in_a_copy_makes_it_a_run_with_a_parent(
    begun: RunFolder, tiny_config: Config, tmp_path: Path
) -> None:
    copy = at(shutil.copytree(begun.store.url, tmp_path / "copy"))
    copy.write_run(tiny_config, "def", parent=copy.copied_from())
    assert copy.copied_from() == ""
    document = storage.read(copy.store, RUN_FILE, RUN)
    assert isinstance(document, RunDocument)
    assert (document.run_id, document.parent, document.url) == ("def", "abc", copy.store.url)
    assert begun.run_id(tiny_config) == "abc"


def test_a_folder_that_was_moved_is_the_run_itself(begun: RunFolder, tmp_path: Path) -> None:
    assert at(Path(begun.store.url).rename(tmp_path / "moved")).copied_from() == ""


def test_a_folder_whose_recorded_address_holds_another_run_now_was_moved(
    begun: RunFolder, tiny_config: Config, tmp_path: Path
) -> None:
    moved = at(Path(begun.store.url).rename(tmp_path / "moved"))
    begun.write_run(tiny_config, "def")
    assert moved.copied_from() == ""


def test_an_address_from_the_environment_is_compared_by_its_digest(
    folder: RunFolder, tiny_config: Config, tmp_path: Path
) -> None:
    folder.write_run(tiny_config.with_interpolations({("url",): "${oc.env:PLACE}"}), "abc")
    assert folder.copied_from() == ""
    assert at(shutil.copytree(folder.store.url, tmp_path / "copy")).copied_from() == "abc"


def test_one_folder_under_two_names_is_one_run(begun: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(begun.store.url)
    assert at(tmp_path / "link").copied_from() == ""
    assert [path.name for path in Path(begun.store.url).iterdir()] == ["run.json"]


def test_a_download_of_a_folder_in_an_object_store_is_a_copy_and_that_store_is_not_contacted(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RunFolder(open_store(f"memory://{uuid.uuid4().hex}"))
    remote.write_run(tiny_config, "abc")
    local = at(tmp_path / "download")
    local.store.put(RUN_FILE, remote.store.read(RUN_FILE))
    monkeypatch.setattr("emocap_pretrain.run_folder.folder.open_store", pytest.fail)
    assert local.copied_from() == "abc"


def test_a_folder_that_was_moved_inside_an_object_store_is_the_run_itself(tiny_config: Config) -> None:
    bucket = f"memory://{uuid.uuid4().hex}"
    before, after = (RunFolder(open_store(f"{bucket}/{name}")) for name in ("before", "after"))
    before.write_run(tiny_config, "abc")
    after.store.put(RUN_FILE, before.store.read(RUN_FILE))
    assert after.copied_from() == "abc"
    before.store.delete(RUN_FILE)
    assert after.copied_from() == ""


def test_a_folder_from_another_host_or_from_a_store_that_does_not_answer_counts_as_a_copy(
    begun: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moved = at(Path(begun.store.url).rename(tmp_path / "moved"))
    document = storage.read(moved.store, RUN_FILE, RUN)
    assert isinstance(document, RunDocument)
    storage.write(moved.store, RUN_FILE, RUN, replace(document, host="another"))
    assert moved.copied_from() == "abc"
    storage.write(moved.store, RUN_FILE, RUN, document)

    def silent(*_: object, **__: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr("emocap_pretrain.run_folder.folder.open_store", silent)
    assert moved.copied_from() == "abc"
    assert "cannot be looked up" in caplog.text


def test_a_run_of_version_0_1_0_is_known_by_the_url_of_its_config(tiny_config: Config, tmp_path: Path) -> None:
    old = json.dumps({"run_id": "abc", "config": tiny_config.stored()}).encode()
    open_store(tiny_config.url).put(RUN_FILE, old)
    assert RunFolder(open_store(tiny_config.url)).copied_from() == ""
    copy = at(shutil.copytree(tiny_config.url, tmp_path / "copy"))
    assert copy.copied_from() == "abc"
