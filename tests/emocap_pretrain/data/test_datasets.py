import io
from pathlib import Path

import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image

from emocap_pretrain.config.data import DataConfig, MixtureDatasetConfig
from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.datasets import CutTexts, cut_captions, open_stream
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.evaluation.tasks import cut_prompts
from emocap_pretrain.ranks.info import Rank

TOKENIZER = Tokenizer.trained_on(["a b c d e f g h"], 300)
LENGTHS = PartLengthsConfig.model_validate({"global": 5, "local": 4, "summary": 9})


@pytest.fixture
def packed(tmp_path: Path) -> MixtureDatasetConfig:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    captions = [Caption("a b c", ("a b", "a b c"), ""), Caption("a b c d", (), "a b c d e f g")]
    more = Caption("a b c d e", ("a",), "a")
    rows = [Record(f"k{number}", file.getvalue(), "png", each, {}, (more,)) for number, each in enumerate(captions)]
    write_shards(rows, tmp_path / "packed")
    return MixtureDatasetConfig(url=str(tmp_path / "packed"))


def test_texts_longer_than_the_tower_reads_are_counted_by_part_with_their_marks(packed: MixtureDatasetConfig) -> None:
    samples, cut = cut_captions([packed], TOKENIZER, LENGTHS)
    assert samples == 2
    assert cut == [
        CutTexts("global", limit=5, texts=4, cut=3, longest=7),
        CutTexts("summary", limit=9, texts=3, cut=0, longest=9),
        CutTexts("local", limit=4, texts=4, cut=1, longest=5),
    ]
    assert [str(each) for each in cut] == [
        "global 75 % (up to 7 tokens, 5 are read)",
        "summary 0 %",
        "local 25 % (up to 5 tokens, 4 are read)",
    ]


def test_the_samples_of_a_mixture_count_together(packed: MixtureDatasetConfig) -> None:
    samples, cut = cut_captions([packed, packed], TOKENIZER, LENGTHS)
    assert samples == 4
    assert cut[0].texts == 8


def test_prompts_are_counted_where_the_settings_name_the_classes() -> None:
    settings = EvaluationConfig.model_validate(
        {"classes": {"x": ["a", "b c d"], "y": "a b c"}, "templates": ["{}", "a {}"]}
    )
    assert cut_prompts(settings, TOKENIZER, 5) == [CutTexts("prompts", limit=5, texts=6, cut=2, longest=6)]
    assert cut_prompts(EvaluationConfig(), TOKENIZER, 5) == []


def test_counting_leaves_the_encoding_as_it_was() -> None:
    before = TOKENIZER.encode(["a b c d e f"], 5).ids
    assert TOKENIZER.counts(["a b c d e f", ""]) == [8, 2]
    assert TOKENIZER.encode(["a b c d e f"], 5).ids.equal(before)


def test_the_stream_of_a_rank_knows_all_ranks_and_those_of_its_node() -> None:
    info = Rank(rank=5, world_size=8, local_rank=1, local_world_size=4)
    stream = open_stream(DataConfig(url="s3://b/faces"), info, Cursor(), global_batch=16, seed=0)
    assert (stream.rank, stream.world_size, stream.local_world_size) == (5, 8, 4)
