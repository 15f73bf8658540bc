"""Tests that packing, training and evaluation leave out what a filter file names, and that the commands say so."""

import itertools
import json
import re
from pathlib import Path

import pytest
from cli_calls import called, printed
from emocap_shards.cursor import Cursor
from emocap_shards.dataset_filter import open_filter
from emocap_shards.filter_file import Exclusion
from emocap_shards.inspecting.label_values import label_values
from emocap_shards.manifest import read_manifest
from emocap_shards.stream import Stream
from filter_files import filter_for
from pretrain_fakes import FakeRuntime, changed, stand_alone

from emocap_pretrain.cli.evaluated_model import with_settings
from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.config.stored import current, differences, dump
from emocap_pretrain.data.balancing import check_balance, read_balance
from emocap_pretrain.data.datasets import open_filters, open_stream, train_tokenizer, training_data
from emocap_pretrain.data.labels import count_classes
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.dry_run.preflight import preflight
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.evaluation.examples import Example, PackedSource
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.loop import pretrain

# Of 24 faces, five are left out, one of them because its only caption is not used. Two others have shorter captions.
LEFT_OUT, SHORTER = (1, 6, 7, 12, 20), (2, 3)


def key(number: int) -> str:
    return f"0000-{number:08d}"


EXCLUSIONS = (
    *(Exclusion(key(number), 1) for number in LEFT_OUT[:-1]),
    Exclusion(key(20), 0, "global", reason="The mouth is closed."),
    Exclusion(key(2), 0, "local", sentence=1),
    Exclusion(key(2), 0, "local", sentence=3),
    Exclusion(key(3), 0, "summary"),
)
DESCRIBED = "5 of 24 samples (1 of them without a caption that is left), and texts of 2 others"


@pytest.fixture
def place(faces: str, tmp_path: Path) -> str:
    return filter_for(faces, tmp_path / "filter.jsonl", *EXCLUSIONS)


@pytest.fixture
def packed(faces: str, place: str, tmp_path: Path) -> str:
    """Packs the dataset of faces without what the filter leaves out."""
    done = called("pack", faces, tmp_path / "packed", "--filter", place, "--processes", "1", "--shard-samples", "7")
    assert done.exit_code == 0, done.stderr
    assert f"--filter leaves out {DESCRIBED}." in " ".join(done.stdout.split())
    assert ": 19 samples in 3 shards" in " ".join(done.stdout.split())
    return str(tmp_path / "packed")


def test_a_packed_filter_keeps_the_bytes_of_images_and_the_other_texts(faces: str, place: str, packed: str) -> None:
    before, after = (
        {sample.key: sample for sample in next(Stream(url=url, global_batch=24, shuffle=False).encoded_steps()).samples}
        for url in (faces, packed)
    )
    assert after.keys() == before.keys() - {key(number) for number in LEFT_OUT}
    assert all(sample.image == before[name].image for name, sample in after.items())
    unchanged = after.keys() - {key(number) for number in SHORTER}
    assert all(after[name].annotation == before[name].annotation for name in unchanged)
    assert read_manifest(packed).samples == 19
    for source, message in (
        (packed, "--filter: .* is the filter of another dataset"),
        (f"{faces}/shard-000000.tar", "--filter is for"),
    ):
        done = called("pack", source, f"{packed}-other", "--filter", place)
        assert done.exit_code == 2
        assert re.search(message, done.stderr)


def test_training_draws_the_samples_and_captions_of_the_packed_filter(faces: str, place: str, packed: str) -> None:
    def seen(**data: object) -> dict[str, object]:
        settings = DataConfig.model_validate({"shuffle_window": 12, **data})
        filters = open_filters(settings)
        balance = read_balance(settings, filters)
        stream = open_stream(settings, Rank(), Cursor(), global_batch=6, seed=3, balance=balance, filters=filters)
        steps = itertools.islice(stream.steps(), 12)
        return {sample.key: (sample.caption, sample.labels) for step in steps for sample in step.samples}

    assert seen(url=faces, filter=place) == seen(url=packed)
    balance = {"label": "emotion", "weights": "inverse_sqrt"}
    assert seen(url=faces, filter=place, balance=balance).items() <= seen(url=packed).items()
    mix = [{"url": faces, "filter": place}, {"url": packed}]
    assert seen(mix=mix) == seen(url=packed)
    first, second = (
        train_tokenizer(data, 300, open_filters(data)).to_json()
        for data in (DataConfig(url=faces, filter=place), DataConfig(url=packed))
    )
    assert first == second


def test_classes_are_counted_and_described_without_what_is_left_out(
    faces: str, place: str, packed: str, tiny_config: Config
) -> None:
    classes = sorted(map(str, label_values(packed, "emotion").values))
    labels = [{"name": "emotion", "classes": classes, "balance": "effective"}]
    heads = changed(tiny_config, objective__labels=labels).objective.labels
    found, wanted = (
        (
            count_classes(data, heads, filters),
            [note.partition(" in an epoch: ")[2] for note in check_balance(balanced, global_batch=8, filters=filters)],
            [(use.samples, use.weight) for use in training_data(data, data.model_dump(), filters)],
        )
        for data in (DataConfig(url=faces, filter=place), DataConfig(url=packed))
        for balanced in [DataConfig.model_validate({**data.model_dump(), "balance": {"label": "emotion"}})]
        for filters in [open_filters(data)]
    )
    assert found == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": [{"url": "a"}], "filter": "f"}, "write it beside each dataset of mix"),
        ({"webdataset": {"url": "a", "samples": 1}, "filter": "f"}, "make a filter of the result"),
    ],
)
def test_a_filter_without_its_dataset_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(settings)
    with pytest.raises(ValueError, match="give url too"):
        EvaluationConfig(filter="f")


def test_a_run_with_a_filter_is_described_resumes_and_refuses_another_filter(
    tiny_config: Config, faces: str, place: str, tmp_path: Path
) -> None:
    stand_alone()
    config = changed(tiny_config, data__filter=place, evaluation__filter=place, checkpoint__every_steps=1)
    digest = open_filter(place, faces).digest[:16]
    assert f"filter leaves out {DESCRIBED}" in " ".join(RunPlan.of(config, 1, on_gpu=False).text().split())
    found = preflight(config)
    assert found.problems == []
    assert f"data.filter (digest {digest}) leaves out {DESCRIBED}, of {faces}." in found.notes
    assert f"evaluation.filter (digest {digest}) leaves out {DESCRIBED}." in found.notes
    pretrain(config, FakeRuntime(stop_after=2))
    # The same filter may lie elsewhere.
    moved = tmp_path / "moved.jsonl"
    Path(place).rename(moved)
    again = changed(config, data__filter=str(moved), evaluation__filter=str(moved))
    assert [key for key, *_ in differences(current(dump(config)), current(dump(again)))] == []
    pretrain(again, FakeRuntime(stop_after=1))
    other = filter_for(faces, tmp_path / "other.jsonl", *EXCLUSIONS[1:])
    for refused in (changed(again, data__filter=other), changed(again, data__filter=None)):
        (problem,) = preflight(refused).problems
        assert "a manifest or a filter has changed" in problem
        with pytest.raises(CheckpointError, match="a manifest or a filter has changed"):
            pretrain(refused, FakeRuntime())


def test_the_check_before_a_start_refuses_a_filter_that_does_not_fit(
    tiny_config: Config, faces: str, packed: str, place: str, tmp_path: Path
) -> None:
    wrong = filter_for(faces, tmp_path / "wrong.jsonl", Exclusion(key(2), 0, "local", sentence=30))
    more = filter_for(faces, tmp_path / "more.jsonl", Exclusion(key(2), 0, "caption", caption=0, captions=2))
    for address, message in (
        (place, "is the filter of another dataset"),
        (str(tmp_path / "absent"), "there is no such filter file"),
    ):
        for section in ("data", "evaluation"):
            settings = {f"{section}__url": packed, f"{section}__filter": address}
            (problem,) = preflight(changed(tiny_config, **settings)).problems
            assert problem.startswith(f"{section}.filter: ")
            assert message in problem
    for address in (wrong, more):
        (problem,) = preflight(changed(tiny_config, data__filter=address)).problems
        assert f"the filter does not fit sample '{key(2)}' of shard" in problem


def test_every_score_is_that_of_the_packed_filter_and_results_name_the_filter(
    finished_run: Config, faces: str, place: str, packed: str, tmp_path: Path
) -> None:
    tasks = ("--task", "zero_shot", "--task", "retrieval", "--task", "held_out_loss", "--group", "emotion")
    saved = tmp_path / "results.json"
    found = printed("evaluate", finished_run.url, "--data", faces, "--filter", place, *tasks, "--save", saved)
    wanted = printed("evaluate", finished_run.url, "--data", packed, *tasks)
    digest = open_filter(place, faces).digest
    for one, other in zip(found["results"], wanted["results"], strict=True):
        assert one["samples"] == other["samples"]
        assert one["scores"] == other["scores"]
        assert one["left_out"] == [["by the filter", 5], *other["left_out"]]
        assert (one["filter_digest"], other["filter_digest"]) == (digest, "")
    file = json.loads(saved.read_text())
    assert file["evaluation"]["filter"] == place
    assert file["tasks"][0]["result"]["filter_digest"] == digest
    shown = called("evaluate", finished_run.url, "--data", faces, "--filter", place).stdout
    assert digest[:16] in shown
    assert "5 x by the filter" in shown


def test_the_filter_of_a_stored_config_is_used_only_with_its_own_dataset_and_permission(tiny_config: Config) -> None:
    config = changed(tiny_config, evaluation__filter="/stored.jsonl")
    assert with_settings(config, {}, may_read=True).evaluation.filter == "/stored.jsonl"
    for changes, wanted in (({"url": "a"}, None), ({"url": "a", "filter": "own.jsonl"}, "own.jsonl")):
        for may_read in (True, False):
            assert with_settings(config, changes, may_read=may_read).evaluation.filter == wanted


def test_examples_know_the_place_of_a_sentence_among_those_that_are_stored(faces: str, place: str) -> None:
    source = PackedSource(faces, filter=open_filter(place, faces))
    examples = [each for each in source.examples(range(len(source))) if isinstance(each, Example)]
    places = {each.key: each.local_places for each in examples}
    assert places[key(2)] == (0, 2, 4)
    assert places[key(3)] == (0, 1, 2)
    assert places[key(0)] is None
    assert [each.key for each in examples] == [key(n) for n in range(24) if n not in LEFT_OUT]
    assert [each.key for each in source.examples(range(2, 5))] == [each.key for each in examples[2:5]]


def test_filters_are_merged_by_a_command(faces: str, place: str, tmp_path: Path) -> None:
    more = filter_for(faces, tmp_path / "more.jsonl", Exclusion(key(5), 0), *EXCLUSIONS[:2])
    done = called("filter", place, more, "--out", tmp_path / "both.jsonl")
    assert done.exit_code == 0, done.stderr
    both = open_filter(str(tmp_path / "both.jsonl"), faces)
    assert f"both.jsonl: 9 exclusions by 2 origins, digest {both.digest[:16]}," in " ".join(done.stdout.split())
    assert both.left_out.tolist() == sorted([5, *LEFT_OUT])
    refused = called("filter", place, tmp_path / "absent.jsonl", "--out", tmp_path / "none.jsonl")
    assert refused.exit_code != 0
    assert "there is no such filter file" in refused.stderr


def test_inspect_counts_by_reason(faces: str, place: str) -> None:
    found = printed("inspect", faces, "--filter", place)["filter"]
    assert found["samples"] == {"of": 24, "left_out": 5, "without_caption": 1}
    assert [(each["name"], each.get("sample", 0), each.get("local", 0)) for each in found["origins"]] == [
        ("agreement", 0, 2),
        ("not a face", 4, 0),
    ]
    shown = " ".join(called("inspect", faces, "--filter", place).stdout.split())
    assert "agreement emocap check 0.5 0 0 1 1 2" in shown
    assert f"leaves out {DESCRIBED}." in shown
