"""Reads a tiny copy of each benchmark with videos, in each layout of its card, and compares the labels by name."""

from pathlib import Path

import orjson
import pytest
from video_trees import a_frame_folder, a_text, a_video_file

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.frames import pictures
from emocap_pretrain.benchmarks.item import FrameFiles, Item, VideoFile
from emocap_pretrain.benchmarks.layouts import FileNames
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.errors import ConfigError, DataError

WITH_VIDEOS = [
    "afew",
    "afew_va",
    "aff_wild2_expression",
    "aff_wild2_units",
    "aff_wild2_va",
    "crema_d",
    "dfew",
    "enterface05",
    "ferv39k",
    "mafw",
    "mafw_captions",
    "mafw_compound",
    "ravdess",
]


def read(name: str, root: Path, split: str, fold: int | None = None):
    """Returns the items and the problems of a copy, and the words for the layout that was found."""
    layout, reader = fitting(catalogue.card(name), root)
    found = list(reader.items(root, split, fold))
    items = [each for each in found if isinstance(each, Item)]
    return items, [each for each in found if isinstance(each, Problem)], layout.about


def classes(items):
    return {item.key: item.class_name for item in items}


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_the_splits_of_each_fold_together_have_the_same_number_of_items(name):
    card = catalogue.card(name)
    sizes = [split.samples for split in card.splits.values() if isinstance(split.samples, tuple)]
    if sizes:
        assert len({sum(each) for each in zip(*sizes, strict=True)}) == 1
    for split in card.splits.values():
        if split.by_class:
            assert sum(split.by_class.values()) == split.samples


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_every_person_is_tested_in_one_fold(name):
    for layout in catalogue.card(name).layouts:
        if isinstance(layout, FileNames):
            persons = [person for fold in layout.folds for person in fold]
            assert len(persons) == len(set(persons)) > 0


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_an_empty_folder_is_no_copy(name, tmp_path):
    with pytest.raises(ConfigError, match="is not a copy of"):
        fitting(catalogue.card(name), tmp_path)


DFEW_LISTS = "EmoLabel_DataSplit/test(single-labeled)"


@pytest.mark.parametrize(
    ("media", "list_name", "text"),
    [
        ("Clip/jpg_256", f"{DFEW_LISTS}/set_2.csv", "video_name,label\n1,1\n00012,7\n13,8\n"),
        ("Clip/clip_224x224_16f", f"{DFEW_LISTS}/test_set_2.csv", "video_name,label\n00001,0\n00012,6\n13,7\n"),
        ("Clip/clip_224x224_16f", f"{DFEW_LISTS}/set_2.csv", "video_name,label\n1,1\n12,7\n13,8\n"),
        (
            "DFEW_Frame_Face",
            "DFEW_set_2_test.txt",
            "/data/x/DFEW_Frame_Face/00001 3 0\n/data/x/DFEW_Frame_Face/00012 3 6\n/data/x/DFEW_Frame_Face/00013 3 9\n",
        ),
    ],
)
def test_dfew_has_labels_from_1_or_from_0_and_folders_of_five_digits(tmp_path, media, list_name, text):
    for clip in ("00001", "00012"):
        a_frame_folder(tmp_path / media / clip, ["00001.jpg", "00002.jpg", "00003.jpg"])
    # The layout is found by the files of the first fold.
    a_text(tmp_path / list_name.replace("set_2", "set_1"), "")
    a_text(tmp_path / list_name, text)
    items, problems, _ = read("dfew", tmp_path, "test", 2)
    assert classes(items) == {f"{media}/00001": "happiness", f"{media}/00012": "fear"}
    assert isinstance(items[0].media, FrameFiles)
    assert [path.name for path in items[0].media.paths] == ["00001.jpg", "00002.jpg", "00003.jpg"]
    assert [each.kind for each in problems] == ["unknown class code"]


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        ("4_setups/All_scenes/test_All.csv", "Interview/Happy/0118 Happy\nWar/Angry/0118 Angry\n"),
        ("Annotation/test.csv", "path,id\nInterview/Happy/0118,3\nWar/Angry/0118,0\n"),
        (
            "test_image.txt",
            "/d/2_ClipsforFaceCrop/Interview/Happy/0118 9 0\n/d/2_ClipsforFaceCrop/War/Angry/0118 9 3\n",
        ),
        ("FERV39K_test.txt", "2_ClipsforFaceCrop/Interview/Happy/0118 9 0\n2_ClipsforFaceCrop/War/Angry/0118 9 3\n"),
    ],
)
def test_ferv39k_has_the_same_classes_with_other_numbers(tmp_path, lists, text):
    for clip in ("Interview/Happy/0118", "War/Angry/0118"):
        a_frame_folder(tmp_path / "2_ClipsforFaceCrop" / clip, ["1.jpg"])
    a_text(tmp_path / lists, text)
    items, problems, _ = read("ferv39k", tmp_path, "test")
    assert classes(items) == {
        "2_ClipsforFaceCrop/Interview/Happy/0118": "happiness",
        "2_ClipsforFaceCrop/War/Angry/0118": "anger",
    }
    assert problems == []


@pytest.mark.parametrize(
    ("media", "lists", "text"),
    [
        ("data/frames", "split/single/no_caption/set_1", "00025.mp4 anger\n00030.mp4 contempt\n"),
        ("data/frames", "Train_Test_Set/single/no_caption/set_1", "00025.mp4 anger\r\n00030.mp4 contempt\r\n"),
        ("data/faces", "Train_Test_Set/single/no_caption_new/set_1", "00025.mp4\tanger\n00030.mp4\tcontempt\n"),
        (
            "data/frames/frames_crop_align_224",
            "anno/single/no_caption/set_1",
            "00025.mp4 anger\r\n00030.mp4 contempt\r\n",
        ),
    ],
)
def test_mafw_has_the_names_of_classes_in_text_files(tmp_path, media, lists, text):
    for clip in ("00025", "00030"):
        a_frame_folder(tmp_path / media / clip, ["00001.png", "00002.png"])
    a_text(tmp_path / lists / "test.txt", text)
    items, problems, _ = read("mafw", tmp_path, "test", 1)
    assert classes(items) == {f"{media}/00025": "anger", f"{media}/00030": "contempt"}
    assert problems == []


@pytest.mark.parametrize(
    ("media", "lists", "text"),
    [
        (
            "data/frames/frames_crop_align_224",
            "anno/single/no_caption/set_1/test.csv",
            "video_name,labels\n00025,0\n00030,2\n",
        ),
        ("data/faces", "MAFW_set_1_test.txt", "/d/MAFW/data/faces/00025 47 3\n/d/MAFW/data/faces/00030 9 7\n"),
    ],
)
def test_mafw_has_other_numbers_for_the_same_classes_in_other_lists(tmp_path, media, lists, text):
    for clip in ("00025", "00030"):
        a_frame_folder(tmp_path / media / clip, ["00001.png"])
    a_text(tmp_path / lists, text)
    items, problems, _ = read("mafw", tmp_path, "test", 1)
    assert classes(items) == {f"{media}/00025": "anger", f"{media}/00030": "contempt"}
    assert problems == []


def test_mafw_may_have_video_files_and_a_missing_one_is_a_problem(tmp_path):
    a_text(tmp_path / "Train_Test_Set/single/no_caption/set_1/test.txt", "00025.mp4 anger\n00026.mp4 fear\n")
    a_video_file(tmp_path / "data/clips/00025.mp4", count=20)
    (item,), problems, about = read("mafw", tmp_path, "test", 1)
    assert "video files" in about
    assert item.media == VideoFile(tmp_path / "data/clips/00025.mp4")
    assert len(list(pictures(item.media))) == 16
    assert [each.place for each in problems] == ["data/clips/00026.mp4"]


def test_the_compound_classes_of_mafw_are_joined_names(tmp_path):
    for clip in ("00108", "00109", "00110", "00111"):
        a_frame_folder(tmp_path / "data/frames" / clip, ["00001.png"])
    text = "00108.mp4 anger\n00109.mp4 sadness_anxiety_helplessness\n00110.mp4 anger_disgust\n00111.mp4 disgust_anger\n"
    a_text(tmp_path / "Train_Test_Set/compound/no_caption/set_1/test.txt", text)
    items, problems, _ = read("mafw_compound", tmp_path, "test", 1)
    assert list(classes(items).values()) == ["anger", "sadness, anxiety and helplessness", "anger and disgust"]
    assert [each.kind for each in problems] == ["unknown class code"]
    target = catalogue.card("mafw_compound").target
    assert target.kind == "class"
    assert target.parts["sadness, anxiety and helplessness"] == ("sadness", "anxiety", "helplessness")
    assert (len(target.classes), len(target.parts)) == (43, 32)


CAPTIONS = (
    "00025.mp4\tanger\t一个男人大声讲话。紧皱眉头。\tA man talks loudly. The tight frown.\r\n"
    "00030.mp4\tfear\t她很害怕。\t\r\n"
)


@pytest.mark.parametrize(
    ("media", "lists"),
    [
        ("data/frames", "split/single/with_caption/set_1"),
        ("data/frames", "Train_Test_Set/single/with_caption/set_1"),
        ("data/faces", "Train_Test_Set/single/with_caption_new/set_1"),
        ("data/frames/frames_crop_align_224", "anno/single/with_caption/set_1"),
    ],
)
def test_the_captions_of_mafw_are_read_from_chinese_encodings(tmp_path, media, lists):
    for clip in ("00025", "00030"):
        a_frame_folder(tmp_path / media / clip, ["00001.png"])
    for encoding in ("gb18030", "gbk"):
        a_text(tmp_path / lists / "test.txt", CAPTIONS, encoding)
        (item,), problems, _ = read("mafw_captions", tmp_path, "test", 1)
        assert item.caption == "A man talks loudly. The tight frown."
        assert [each.kind for each in problems] == ["empty caption"]


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("AFEW_Face/validation", {"Anger": "anger", "Happiness": "happiness", "Sadness": "sadness"}),
        ("face/val_afew", {"Angry": "anger", "Happy": "happiness", "Sad": "sadness"}),
    ],
)
def test_afew_has_folders_of_faces_with_two_namings(tmp_path, folder, names):
    for place, name in enumerate(names):
        frames = ["001.png"] if folder.startswith("AFEW") else ["001.jpg"]
        a_frame_folder(tmp_path / folder / name / f"0_{place}_001343200", frames)
    items, problems, _ = read("afew", tmp_path, "validation")
    assert list(classes(items).values()) == list(names.values())
    assert problems == []


def test_afew_may_have_video_files_and_other_files_are_counted(tmp_path):
    a_video_file(tmp_path / "video/val_afew/Angry/000149120.avi", count=18)
    a_text(tmp_path / "video/val_afew/Val_6.xml", "<xml/>")
    (item,), problems, _ = read("afew", tmp_path, "validation")
    assert item.class_name == "anger"
    assert len(list(pictures(item.media))) == 16
    assert [each.place for each in problems] == ["video/val_afew/Val_6.xml"]


def test_crema_d_has_flash_videos_and_folds_by_actor(tmp_path):
    for name in ("1001_DFA_ANG_XX", "1018_IEO_HAP_LO", "1019_TAI_SAD_X", "1091_WSI_NEU_XX"):
        a_video_file(tmp_path / "VideoFlash" / f"{name}.flv", count=20)
    assert classes(read("crema_d", tmp_path, "test", 1)[0]) == {
        "VideoFlash/1001_DFA_ANG_XX.flv": "anger",
        "VideoFlash/1018_IEO_HAP_LO.flv": "happiness",
    }
    (last,), problems, _ = read("crema_d", tmp_path, "test", 5)
    assert (last.class_name, last.group, problems) == ("neutral", "1091", [])
    assert len(read("crema_d", tmp_path, "train", 5)[0]) == 3
    assert len(list(pictures(last.media))) == 16


def test_crema_d_may_have_folders_of_faces(tmp_path):
    a_frame_folder(tmp_path / "face_aligned/1037_DFA_DIS_XX", ["frame_1.jpg"])
    (item,), _, _ = read("crema_d", tmp_path, "test", 3)
    assert item.class_name == "disgust"


def test_crema_d_without_git_lfs_is_a_video_that_cannot_be_decoded(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    a_text(tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv", pointer)
    (item,), _, _ = read("crema_d", tmp_path, "test", 1)
    with pytest.raises(DataError, match="cannot be decoded"):
        list(pictures(item.media))


@pytest.mark.parametrize("modality", ["01", "02"])
def test_ravdess_has_emotions_from_01_and_no_songs(tmp_path, modality):
    for actor, name in [("01", "01-01-01-01-01-01-01"), ("04", "01-08-02-01-01-02-04"), ("05", "01-05-01-01-01-01-05")]:
        a_video_file(tmp_path / f"Actor_{actor}" / f"{modality}-{name[3:]}.mp4", count=1)
    a_video_file(tmp_path / f"Actor_01/{modality}-02-03-01-01-01-01.mp4", count=1)
    items, problems, _ = read("ravdess", tmp_path, "test", 1)
    assert [(item.class_name, item.group) for item in items] == [("neutral", "01")]
    assert [each.kind for each in problems] == []


def test_ravdess_may_have_folders_of_faces(tmp_path):
    a_frame_folder(tmp_path / "face_aligned/Actor_24/02-01-08-01-01-01-24", ["1.jpg"])
    (item,), _, _ = read("ravdess", tmp_path, "test", 6)
    assert (item.class_name, item.group) == ("surprise", "24")


@pytest.mark.parametrize(
    ("prefix", "blank", "suffix"), [("", " ", ".avi"), ("", "_", ".avi"), ("face_aligned/", "_", "")]
)
def test_enterface05_names_the_person_by_the_folder_and_subject_6_is_in_no_fold(tmp_path, prefix, blank, suffix):
    clips = {
        "subject 1/anger/sentence 1/s1_an_1": (1, "anger"),
        "subject 3/sadness/sentence 2/s_3_sa_2": (1, "sadness"),
        "subject 11/disgust/sentence 1/s12_di_1": (2, "disgust"),
        "subject 6/fear/sentence 1/s6_fe_1": (None, "fear"),
    }
    for clip in clips:
        path = tmp_path / f"{prefix}{clip.replace(' ', blank)}{suffix}"
        if suffix:
            a_video_file(path, count=1)
        else:
            a_frame_folder(path, ["0.jpg"])
    for fold in (1, 2):
        items, problems, _ = read("enterface05", tmp_path, "test", fold)
        assert [item.class_name for item in items] == [name for where, name in clips.values() if where == fold]
        assert [each.kind for each in problems] == ["left out: the person is in no fold"]


@pytest.mark.parametrize("above", ["", "01/"])
def test_afew_va_has_tenths_of_valence_and_arousal(tmp_path, above):
    for clip in ("001", "002"):
        a_frame_folder(tmp_path / f"{above}{clip}", ["00000.png", "00001.png"])
        frames = {f"0000{number}": {"landmarks": [], "valence": -4, "arousal": 10} for number in range(2)}
        (tmp_path / f"{above}{clip}/{clip}.json").write_bytes(orjson.dumps({"frames": frames, "video_id": clip}))
    items, problems, _ = read("afew_va", tmp_path, "test", 2)
    assert [item.key for item in items] == [f"{above}002/00000.png", f"{above}002/00001.png"]
    assert items[0].numbers == {"valence": -0.4, "arousal": 1.0}
    assert items[0].group == "002"
    assert problems == []


ANNOTATIONS = ["3rd_ABAW_Annotations", "annotations", "3rd ABAW Annotations/Third ABAW Annotations"]


@pytest.mark.parametrize("above", ANNOTATIONS)
def test_aff_wild2_has_expressions_of_frames_and_of_second_persons(tmp_path, above):
    for video, labels in [("8-30-1280x720", [0, -1, 7]), ("8-30-1280x720_left", [4])]:
        a_frame_folder(tmp_path / "cropped_aligned" / video, ["00001.jpg", "00002.jpg", "00003.jpg"])
        lines = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n" + "".join(
            f"{each}\n" for each in labels
        )
        a_text(tmp_path / above / f"EXPR_Classification_Challenge/Validation_Set/{video}.txt", lines)
    items, problems, _ = read("aff_wild2_expression", tmp_path, "validation")
    assert [(item.key, item.class_name, item.group) for item in items] == [
        ("cropped_aligned/8-30-1280x720/00001.jpg", "neutral", "8-30-1280x720"),
        ("cropped_aligned/8-30-1280x720/00003.jpg", "other", "8-30-1280x720"),
        ("cropped_aligned/8-30-1280x720_left/00001.jpg", "happiness", "8-30-1280x720_left"),
    ]
    assert [each.kind for each in problems] == ["left out: the frame has no valid label"]


def test_aff_wild2_with_seven_classes_is_no_copy(tmp_path):
    (tmp_path / "cropped_aligned").mkdir()
    header = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise\n0\n"
    a_text(tmp_path / "annotations/EXPR_Recognition_Challenge/Validation_Set/a.txt", header)
    with pytest.raises(
        ConfigError, match="with the first row Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
    ):
        read("aff_wild2_expression", tmp_path, "validation")


@pytest.mark.parametrize("above", ANNOTATIONS)
def test_aff_wild2_has_valence_and_arousal_and_minus_5_is_none(tmp_path, above):
    a_frame_folder(tmp_path / "cropped_aligned/a_right", ["00001.jpg", "00002.jpg"])
    text = "valence,arousal\n0.602,-0.389\n-5,-5\n"
    a_text(tmp_path / above / "VA_Estimation_Challenge/Validation_Set/a_right.txt", text)
    (item,), problems, _ = read("aff_wild2_va", tmp_path, "validation")
    assert item.numbers == {"valence": 0.602, "arousal": -0.389}
    assert [each.kind for each in problems] == ["left out: the frame has no valid label"]


@pytest.mark.parametrize("above", ANNOTATIONS)
def test_aff_wild2_has_twelve_action_units_and_minus_1_is_none(tmp_path, above):
    a_frame_folder(tmp_path / "cropped_aligned/a", ["00001.jpg", "00002.jpg"])
    text = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26\n0,0,1,0,0,0,0,0,0,0,0,1\n" + "-1," * 11 + "-1\n"
    a_text(tmp_path / above / "AU_Detection_Challenge/Validation_Set/a.txt", text)
    (item,), problems, _ = read("aff_wild2_units", tmp_path, "validation")
    assert [unit for unit, is_shown in item.units.items() if is_shown] == [4, 26]
    assert len(item.units) == 12
    assert [each.kind for each in problems] == ["left out: the frame has no valid label"]
