import pytest
from emocap_shards.errors import ManifestError, RecordError
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import read_manifest
from emocap_shards.order import permutation
from emocap_shards.store import open_store
from emocap_shards.store.folder import FolderStore
from emocap_shards.writer import write_shards
from emocap_shards.writing import dataset as dataset_module
from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.prepare import PrepareConfig
from emocap_shards.writing.reshard import reshard
from emocap_shards.writing.shards import ShardSize
from forged import ANNOTATION, forge, sample
from pack_cases import files_of, samples_of
from shard_cases import encode, records


@pytest.fixture
def url(tmp_path):
    write_shards(records(20), tmp_path / "dataset", samples_per_shard=3)
    return str(tmp_path / "dataset")


def keys(url):
    return [sample.key for sample in samples_of(url)]


@pytest.mark.parametrize("samples", [1, 4, 20, 1000])
def test_other_shards_are_what_packing_would_have_made(url, tmp_path, samples):
    reshard([url], tmp_path / "out", size=ShardSize(samples))
    write_shards(records(20), tmp_path / "packed", samples_per_shard=samples)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "packed")


def test_shuffled_every_sample_is_there_once_in_an_order_of_the_seed(url, tmp_path):
    first = reshard([url], tmp_path / "a", seed=5, size=ShardSize(6)).manifest
    assert reshard([url], tmp_path / "b", seed=5, size=ShardSize(6)).manifest == first
    assert keys(tmp_path / "a") == [f"face-{number:04d}" for number in permutation(5, 0, 0, 20)]
    assert reshard([url], tmp_path / "c", seed=6, size=ShardSize(6)).manifest != first
    assert verify(tmp_path / "a").whole


def test_the_order_does_not_depend_on_how_much_is_read_at_once(url, tmp_path, monkeypatch):
    first = reshard([url], tmp_path / "a", seed=5).manifest
    monkeypatch.setattr(dataset_module, "_TOGETHER_BYTES", 1)
    assert reshard([url], tmp_path / "b", seed=5).manifest == first


def test_several_datasets_become_one(url, tmp_path):
    write_shards(records(30)[20:], tmp_path / "second")
    manifest = reshard([url, str(tmp_path / "second")], tmp_path / "out").manifest
    write_shards(records(30), tmp_path / "packed")
    assert manifest == read_manifest(tmp_path / "packed")
    shuffled = reshard([url, str(tmp_path / "second")], tmp_path / "shuffled", seed=1).manifest
    assert shuffled.samples == 30
    assert sorted(keys(tmp_path / "shuffled")) == keys(tmp_path / "out")


def test_a_key_in_both_is_named_and_numbers_tell_them_apart(url, tmp_path):
    write_shards(records(2), tmp_path / "second")
    both = [url, str(tmp_path / "second")]
    with pytest.raises(RecordError, match=r"'face-0000' of .*second: the key 'face-0000' is taken by .* of .*dataset;"):
        reshard(both, tmp_path / "out")
    assert reshard(both, tmp_path / "out", number_keys=True).manifest.samples == 22


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_damage_is_named_and_may_be_let_go(url, tmp_path):
    flip(tmp_path / "dataset" / "shard-000001.tar", 600)
    with pytest.raises(RecordError, match=r"'face-0003' of shard .*dataset/shard-000001\.tar: its CRC-32C"):
        reshard([url], tmp_path / "out")
    done = reshard([url], tmp_path / "out", skip_bad=1)
    assert (done.manifest.samples, len(done.skipped)) == (19, 1)
    (tmp_path / "dataset" / "shard-000004.tar").unlink()
    with pytest.raises(RecordError, match=r"shard-000004\.tar: it is missing"):
        reshard([url], tmp_path / "other", skip_bad=3)
    assert reshard([url], tmp_path / "third", skip_bad=4).manifest.samples == 16
    assert reshard([url], tmp_path / "fourth", skip_bad=4, seed=3).manifest.samples == 16


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"gif": encode(1), "json": ANNOTATION}, "its extension 'gif' is not one of"),
        ({"jpg": encode(1), "json": ANNOTATION}, "the image is PNG, but"),
        ({"png": b"<html>", "json": ANNOTATION}, "the image is a web page"),
        ({"png": encode(1), "json": b"[1]"}, "annotation is list"),
    ],
)
def test_what_another_program_put_into_a_dataset_is_not_copied_on(tmp_path, members, reason):
    forge_at = tmp_path / "forged"
    forge_at.mkdir()
    forge(forge_at, [[sample("good"), sample("bad", members)]])
    with pytest.raises(RecordError, match=f"{reason}"):
        reshard([str(forge_at)], tmp_path / "out")


def test_it_resumes_where_it_was_interrupted(url, tmp_path):
    class Unplugged:
        total = None

        def rows(self):
            for number, row in enumerate(DatasetSource.open([url], seed=2).rows()):
                if number == 11:
                    raise KeyboardInterrupt
                yield row

    with pytest.raises(KeyboardInterrupt):
        pack(Unplugged(), tmp_path / "out", PackConfig(ShardSize(3), PrepareConfig(trusted=True)))
    assert reshard([url], tmp_path / "out", seed=2, size=ShardSize(3)).resumed == 3
    reshard([url], tmp_path / "unbroken", seed=2, size=ShardSize(3))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "unbroken")


def test_it_reads_no_more_than_a_few_groups_ahead(url, monkeypatch):
    monkeypatch.setattr(dataset_module, "_TOGETHER_BYTES", 1)
    asked = []
    read_ranges = FolderStore.read_ranges

    def counting(store, spans):
        asked.extend(span for span in spans if span[0].endswith(".tar"))
        return read_ranges(store, spans)

    monkeypatch.setattr(FolderStore, "read_ranges", counting)
    rows = DatasetSource.open([url]).rows()
    for _ in range(5):
        next(rows)
    rows.close()
    assert len(asked) <= 5 + 3


@pytest.mark.parametrize(("urls", "seed"), [([], None), (["x"], -1)])
def test_no_dataset_and_no_seed_below_zero(urls, seed, tmp_path):
    with pytest.raises(RecordError, match=r"name the new dataset after|a seed is 0 or more"):
        reshard(urls, tmp_path / "out", seed=seed)


def test_without_a_dataset_nothing_is_written(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        reshard([str(tmp_path / "nothing")], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_from_and_to_s3(s3, url, tmp_path):
    reshard([url], f"{s3}/first", size=ShardSize(7))
    reshard([f"{s3}/first"], f"{s3}/second", seed=3, size=ShardSize(5))
    local = reshard([url], tmp_path / "out", seed=3, size=ShardSize(5))
    assert read_manifest(f"{s3}/second") == local.manifest
    assert [entry.path for entry in open_store(f"{s3}/second").list("journal")] == []
