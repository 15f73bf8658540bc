"""Tests what a result says about the source of the training captions."""

import io
from pathlib import Path

import pytest
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image
from pretrain_fakes import changed

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.datasets import caption_words
from emocap_pretrain.evaluation.domain import (
    TrainingCaptions,
    collections_of,
    domain_of,
    names_and_datasets,
    with_domains,
)
from emocap_pretrain.run_folder.results import ClassValues, Domain, TaskResult

_file = io.BytesIO()
Image.new("RGB", (4, 4)).save(_file, "PNG")
PIXEL = _file.getvalue()
RECALLS = ClassValues("recall", "recall", ("anger", "contempt", "anxiety"), (0.5, 0.5, 0.5), (2, 2, 2))


def training(config: Config) -> TrainingCaptions:
    return TrainingCaptions.of_run(config.stored())


@pytest.mark.parametrize(
    ("trained", "scored", "kind"),
    [
        ("data/faces/train", "data/faces/test", "in domain"),
        ("s3://bucket/faces/train/", "s3://bucket/faces/val", "in domain"),
        ("data/faces", "data/faces", "in domain"),
        ("data/faces/train", "data/others/test", "unknown"),
        ("data/raf", "data/ferplus", "unknown"),  # Two datasets in one folder.
        ("https://***@host/train", "https://***@host/test", "unknown"),
    ],
)
def test_splits_of_one_dataset_are_known_by_their_addresses(trained: str, scored: str, kind: str) -> None:
    assert domain_of(TrainingCaptions((trained,)), (), url=scored).kind == kind


def test_local_addresses_are_compared_after_they_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "link").symlink_to("faces")
    monkeypatch.chdir(tmp_path)
    trained = TrainingCaptions((f"{tmp_path}/faces/train",), ("ferplus",), is_complete=True)
    for scored in ("faces/test", "./faces/../faces/test/", "link/test", "faces/train"):
        assert domain_of(trained, ("raf_db",), url=scored).kind == "in domain", scored
    monkeypatch.chdir(tmp_path / "faces")
    assert domain_of(trained, ("raf_db",), url="test").kind == "in domain"
    assert domain_of(trained, ("raf_db",), url="s3://faces/test").kind == "zero-shot"


def test_a_set_is_zero_shot_only_if_all_sources_of_captions_and_of_faces_are_known_and_differ() -> None:
    known = TrainingCaptions(sources=("ferplus",), is_complete=True)
    assert domain_of(known, ("ferplus",), url=None).kind == "in domain"
    # The images of FER+ are those of FER2013, under another name and with other labels.
    assert domain_of(known, ("fer2013",), url=None) == Domain("in domain", "captions of fer2013")
    assert domain_of(known, ("raf_db",), url=None) == Domain("zero-shot", "captions of ferplus alone")
    assert domain_of(known, (), url="data/test") == Domain("unknown", "the source of these faces is not known")
    some = TrainingCaptions(sources=("ferplus",))
    assert domain_of(some, ("ferplus_most",), url=None).kind == "in domain"
    assert domain_of(some, ("raf_db",), url=None).why == "the source of the training captions is not known"


def test_benchmarks_that_share_faces_say_so_on_their_cards() -> None:
    assert collections_of(["facexbench"]) & collections_of(["raf_db_compound"]) == {"raf_db"}
    assert collections_of(["faba_au"]) & collections_of(["affectnet_8"]) == {"affectnet"}
    assert collections_of(["mafw"]) & collections_of(["mafw_compound"]) == {"mafw"}
    assert collections_of(["my_faces"]) == {"my_faces"}
    for card in map(catalogue.card, catalogue.names()):
        assert card.name not in card.faces


def test_the_config_of_a_run_says_from_where_its_captions_came(tiny_config: Config) -> None:
    assert training(tiny_config) == TrainingCaptions((tiny_config.data.url or "",))
    named = changed(tiny_config, data__captions_from=["ferplus"])
    assert training(named).is_complete
    assert training(changed(tiny_config, data__captions_from=[])).is_complete
    # The captions of the weights of another model are not those of this run.
    begun = changed(named, model__from="somebody/clip")
    assert training(begun) == TrainingCaptions(training(named).urls, ("ferplus",))
    assert training(begun).also(["ferplus", "web"]).is_complete


def test_only_results_of_prompts_say_what_they_are() -> None:
    prompted = TaskResult("prompted", 3, (), class_values=(RECALLS,), benchmark="raf_db", domain=Domain())
    other = TaskResult("probe", 3, ())
    known = TrainingCaptions(("data/raf/train",), ("ferplus",), is_complete=True)
    found = with_domains([prompted, other], known, EvaluationConfig(), url=None)
    assert [each.domain and each.domain.kind for each in found] == ["zero-shot", None]
    assert found[0].tags() == {"raf_db/prompted/domain": "zero-shot"}
    assert found[1].tags() == {}
    assert ("result is", "zero-shot (captions of ferplus alone)") in found[0].rows()
    packed_set = TaskResult("prompted", 3, (), domain=Domain())
    (found_packed,) = with_domains([packed_set], known, EvaluationConfig(faces_from=("sfew",)), url="data/raf/test")
    assert ("result is", "prompted, in domain (trained on data/raf/train)") in found_packed.rows()


def test_classes_whose_words_no_caption_has_are_zero_shot_classes(tmp_path: Path) -> None:
    captions = [
        Caption("An angry face.", ("The brows are lowered.",), "Somebody is ANXIOUS."),
        Caption("A face.", (), ""),
    ]
    url = str(tmp_path / "captions")
    write_shards((Record(f"k{n}", PIXEL, "png", each) for n, each in enumerate(captions)), url, samples_per_shard=2)
    words = caption_words([url])
    assert words == {*["an", "a", "angry", "anxious", "face", "the", "brows", "are", "lowered", "somebody", "is"]}
    result = TaskResult("prompted", 6, (), class_values=(RECALLS,), domain=Domain())
    settings = EvaluationConfig(classes={name: (name,) for name in RECALLS.classes})
    (found,) = with_domains([result], TrainingCaptions((url,), words=words), settings, url=url)
    assert found.domain == Domain("in domain", f"trained on {url}", ("contempt",))
    assert ("zero-shot classes", "contempt") in found.rows()
    # A class is also known by the words that its prompts use.
    scornful = EvaluationConfig(classes={**(settings.classes or {}), "contempt": ("an angry, mean look",)})
    (found,) = with_domains([result], TrainingCaptions((url,), words=words), scornful, url=url)
    assert found.domain is not None
    assert found.domain.unseen == ()


def test_words_say_nothing_if_another_dataset_of_the_run_was_not_read() -> None:
    run = TrainingCaptions(("/faces/train", "s3://bucket/more"))
    words = frozenset({"happy"})
    assert run.also(urls=("/faces/train",), words=words).words is None
    assert run.also(urls=("/faces/./train", "s3://bucket/more/"), words=words).words == words
    assert TrainingCaptions().also(urls=("/faces/train",), words=words).words == words


def test_a_folder_with_a_dataset_is_no_name_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards([Record("k", PIXEL, "png", Caption("A face.", (), ""))], str(tmp_path / "train"), samples_per_shard=1)
    (tmp_path / "ferplus").mkdir()  # No dataset.
    monkeypatch.chdir(tmp_path)
    assert names_and_datasets(["train", "ferplus", "raf_db", "data/faces", "s3://bucket"]) == (
        ("ferplus", "raf_db"),
        ("train", "data/faces", "s3://bucket"),
    )
