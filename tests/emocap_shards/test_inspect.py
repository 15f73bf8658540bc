import pytest
from emocap_shards.errors import ManifestError
from emocap_shards.inspect import Spread, summarise, verify
from emocap_shards.writer import write_shards
from shard_cases import records


@pytest.fixture
def folder(tmp_path):
    write_shards(records(10), tmp_path, samples_per_shard=4)
    return tmp_path


def test_a_summary_counts_what_was_written(folder):
    summary = summarise(folder)
    assert (summary.samples, summary.shards, summary.looked_at, summary.damaged) == (10, 3, 10, 0)
    assert summary.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert summary.labels == {"emotion": {"joy": 5, "fear": 5}}
    assert summary.numbers["valence"].mean == pytest.approx(0.45)
    assert (summary.numbers["valence"].least, summary.numbers["valence"].most) == (0.0, 0.9)
    assert summary.words["global"] == Spread(4.0, 4.0, 4.0)
    assert summary.words["local"] == Spread(2.0, 2.0, 2.0)
    assert summary.sentences == Spread(0.0, 0.9, 2.0)
    assert summary.width_px == summary.height_px == Spread(8.0, 8.0, 8.0)


def test_a_summary_looks_at_no_more_samples_than_it_may(folder):
    summary = summarise(folder, look_at=4)
    assert (summary.samples, summary.looked_at) == (10, 4)
    assert sum(summary.labels["emotion"].values()) == 4
    assert summarise(folder, look_at=0).words["global"] == Spread(0.0, 0.0, 0.0)


def test_a_summary_counts_damage_and_goes_on(folder):
    shard = folder / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    assert summarise(folder).damaged == 1


@pytest.mark.parametrize("look", [summarise, verify])
def test_a_folder_without_a_manifest_is_no_dataset(tmp_path, look):
    with pytest.raises(ManifestError, match="make one with `emocap pack`"):
        look(tmp_path)
