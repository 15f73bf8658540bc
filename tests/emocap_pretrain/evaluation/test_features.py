"""Tests the vectors of a split: against the model itself, with a cache in every state, and with examples left out."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from emocap_shards.inspecting.label_values import LabelValues
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from evaluation_jobs import embedder_of
from torch import Tensor

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.parts import PARTS, WHOLE
from emocap_pretrain.data.transform import BICUBIC, Resize
from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.examples import Content, Example, LeftOut, PackedSource
from emocap_pretrain.evaluation.feature_cache import FeatureCache
from emocap_pretrain.evaluation.features import Extraction, Features, joined
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

ALONE = RankGroup(Rank(), "cpu", None)


@pytest.fixture
def embedder(tiny_config: Config) -> Embedder:
    return embedder_of(tiny_config)


@dataclass(frozen=True)
class Listed:
    """An `ExampleSource` that has the given examples."""

    found: Sequence[Example | LeftOut]
    address: str = "listed"
    images_each: int = 1
    may_have_gaps: bool = True

    def __len__(self) -> int:
        return len(self.found)

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        return [self.found[number] for number in numbers]

    def label_values(self, name: str, *, seconds: float | None = None) -> LabelValues:
        raise NotImplementedError


@dataclass
class Frames:
    """The content of an example: frames of one colour each. A content without frames cannot be decoded."""

    colours: Sequence[int]
    decoded: int = 0

    def digest(self) -> bytes:
        return repr(self.colours).encode()

    def crops(self, pixels: int, crop: ImageCrop, resize: Resize = BICUBIC) -> Sequence[Crop]:  # noqa: ARG002
        self.decoded += 1
        if not self.colours:
            raise DataError("the video has no frames")
        return [np.full((pixels, pixels, 3), colour, np.uint8) for colour in self.colours]


def features(source: Any, extraction: Extraction) -> Features:
    return joined(extraction.collect(source, ALONE) or [], source.address)


def arrays(found: Features) -> dict[str, Any]:
    texts = {f"texts of {name}": part.vectors for name, part in found.parts.items()}
    owners = {f"owners of {name}": part.owner for name, part in found.parts.items()}
    return {"images": found.images, "pooled": found.pooled} | texts | owners


def assert_equal(left: Features, right: Features) -> None:
    assert (left.keys, left.labels, left.groups, left.left_out) == (
        right.keys,
        right.labels,
        right.groups,
        right.left_out,
    )
    ours, theirs = arrays(left), arrays(right)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert torch.equal(array, theirs[name]), name


@pytest.mark.parametrize("compares_patches", [False, True])
def test_the_vectors_of_a_packed_dataset_are_those_of_the_model(
    embedder: Embedder, faces: str, compares_patches: bool
) -> None:
    lengths = {"global": 5, "local": 7, "summary": 9}  # Every text is cut.
    local = LocalAlignment(sharpness=5.0, length=7) if compares_patches else None
    embedder = replace(embedder, lengths=lengths, local=local)
    found = features(PackedSource(faces), Extraction(embedder, 7, (*PARTS, WHOLE)))
    samples = [embedder.cropped(sample) for sample in Stream(url=faces, global_batch=1).read(range(24))]
    assert list(found.keys) == [sample.key for sample in samples]
    assert list(found.labels) == [sample.labels for sample in samples]
    # The reference uses other batches, so the last bits of its vectors may differ.
    torch.testing.assert_close(found.images, embedder.images(samples), rtol=0, atol=1e-6)
    patches = embedder.patches([sample.image for sample in samples]).mean(1)
    assert (found.patches is not None) == compares_patches
    if found.patches is not None:
        torch.testing.assert_close(found.patches, patches, rtol=0, atol=1e-6)
    for part, length in zip((*PARTS, WHOLE), (5, 9, 7, 9), strict=True):
        texts = [(row, text) for row, sample in enumerate(samples) for text in part.texts(sample.caption)]
        of_part = found.parts[part.name]
        assert list(zip(of_part.owner.tolist(), of_part.texts, strict=True)) == texts
        # The synthetic faces have one caption each.
        assert torch.equal(of_part.caption, torch.unique(of_part.owner, return_inverse=True)[1])
        encode = embedder.sentences if compares_patches and part.name == "local" else embedder.texts
        wanted = encode([text for _, text in texts], length)
        torch.testing.assert_close(of_part.vectors, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_a_cache_in_any_state_gives_the_same_bits(embedder: Embedder, faces: str, tmp_path: Path, kept: int) -> None:
    """An interrupted evaluation leaves the vectors of its first batches. One file of the cache is also cut off."""
    plain = Extraction(embedder, 7, PARTS)
    cached = replace(plain, cache=FeatureCache(open_store(tmp_path), embedder.digest()))
    wanted = features(PackedSource(faces), plain)
    assert_equal(features(PackedSource(faces), cached), wanted)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files[kept:]:
        file.unlink()
    if kept:
        files[0].write_bytes(files[0].read_bytes()[:-3])
    assert_equal(features(PackedSource(faces), cached), wanted)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_cached_vectors_are_not_computed_again_and_another_model_has_others(
    embedder: Embedder, tiny_config: Config, tmp_path: Path
) -> None:
    contents = [Frames([number]) for number in range(5)]
    source = Listed([Example(str(number), content) for number, content in enumerate(contents)])
    extraction = Extraction(embedder, 2, (), FeatureCache(open_store(tmp_path), embedder.digest()))
    first = features(source, extraction)
    assert_equal(features(source, extraction), first)
    assert [content.decoded for content in contents] == [1] * 5
    changed = embedder_of(tiny_config)
    with torch.no_grad():
        changed.model.to_image.weight[0, 0] += 1e-3
    other = Extraction(changed, 2, (), FeatureCache(open_store(tmp_path), changed.digest()))
    assert not torch.equal(features(source, other).images, first.images)
    assert [content.decoded for content in contents] == [2] * 5


@pytest.mark.parametrize("damage", ["a flipped bit", "a missing array", "another file", "no checksum"])
def test_a_damaged_file_of_a_cache_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(open_store(tmp_path), "m")
    arrays = {"decoded": np.array([True, False]), "images": np.ones((1, 4), dtype=np.float32)}
    path, other = (cache.path([content], []) for content in (b"a", b"b"))
    for each in (path, other):
        cache.write(each, arrays)
    found = cache.read(path)
    assert found is not None
    assert found.keys() == arrays.keys()
    assert all((found[name] == arrays[name]).all() for name in arrays)
    file = tmp_path / path
    data, stored = bytearray(file.read_bytes()), safetensors.numpy.load(file.read_bytes())
    match damage:
        case "a flipped bit":
            place = data.rindex(arrays["images"].tobytes())
            data[place] ^= 1
        case "a missing array":
            data = safetensors.numpy.save({name: each for name, each in stored.items() if name != "decoded"})
        case "another file":
            data = (tmp_path / other).read_bytes()
        case _:
            data = safetensors.numpy.save(arrays)
    file.write_bytes(data)
    assert cache.read(path) is None
    assert "is damaged, and its vectors are computed again" in caplog.text
    cache.write(path, arrays)
    assert cache.read(path) is not None


def test_a_cache_that_cannot_be_written_is_a_warning(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(open_store(tmp_path / "file"), embedder.digest())
    source = Listed([Example("a", Frames([1]))])
    with caplog.at_level(logging.WARNING):
        assert_equal(features(source, Extraction(embedder, 2, (), cache)), features(source, Extraction(embedder, 2)))
    assert "the cache of features is not written" in caplog.text


def test_a_video_has_the_mean_of_the_projections_of_its_frames(embedder: Embedder) -> None:
    contents: list[Content] = [Frames([0, 90, 250]), Frames([17])]
    source = Listed([Example(str(number), content) for number, content in enumerate(contents)], images_each=3)
    found = features(source, Extraction(embedder, 4))
    crops = [crop for content in contents for crop in content.crops(embedder.model.pixels, "center")]
    _, pooled = embedder.crops_and_pooled(crops)
    with torch.inference_mode():
        projected = embedder.model.to_image(pooled)
    mean = torch.stack([projected[:3].mean(0), projected[3]])
    torch.testing.assert_close(found.images, mean / mean.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, torch.stack([pooled[:3].mean(0), pooled[3]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_what_cannot_be_decoded_is_named_and_its_texts_go_with_it(
    embedder: Embedder, tmp_path: Path, cached: bool
) -> None:
    caption = Caption("a smile", (), "")
    found: list[Example | LeftOut] = [
        Example("a", Frames([1]), {"emotion": "joy"}, (caption,)),
        Example("b", Frames([]), {"emotion": "fear"}, (caption,)),
        LeftOut("c", "missing image"),
        Example("d", Frames([2]), {"emotion": "anger"}, (caption, Caption("a frown", (), "")), group="anna"),
        Example("e", Frames([])),
    ]
    cache = FeatureCache(open_store(tmp_path), "m") if cached else None
    extraction = Extraction(embedder, 2, PARTS[:1], cache)
    for _ in range(2):
        split = features(Listed(found), extraction)
        assert split.keys == ("a", "d")
        assert split.groups == (None, "anna")
        assert [labels["emotion"] for labels in split.labels] == ["joy", "anger"]
        assert split.parts["global"].texts == ("a smile", "a smile", "a frown")
        assert split.parts["global"].owner.tolist() == [0, 1, 1]
        assert {(each.key, each.kind) for each in split.left_out} == {
            ("b", "cannot be decoded"),
            ("c", "missing image"),
            ("e", "cannot be decoded"),
        }
    with pytest.raises(DataError, match="b: the video has no frames"):
        features(replace(Listed(found), may_have_gaps=False), Extraction(embedder, 2))
    with pytest.raises(DataError, match=r"listed has no example .*; the first is e \(cannot be decoded\)"):
        features(Listed(found[-1:]), Extraction(embedder, 2))


def test_texts_that_differ_only_in_their_parts_are_cached_apart(tmp_path: Path) -> None:
    cache = FeatureCache(open_store(tmp_path), "m")
    paths = [
        cache.path(contents, texts)
        for contents, texts in itertools.product(
            ([b"ab"], [b"a", b"b"], [b"a", b"bc"]), ([], ["global: a"], ["local: a"], ["global: a", ""])
        )
    ]
    assert len(set(paths)) == len(paths)


def test_the_digest_of_a_model_does_not_change_with_its_use(embedder: Embedder) -> None:
    before = embedder.digest()
    embedder.texts(["a smile"])
    assert embedder.digest() == before


class _Overflowing:
    """An embedder without a model. The pooled vector of an image of the colour 7 has an infinite value.

    The projected vectors of all images are finite.
    """

    model = SimpleNamespace(pixels=2)

    def crops_and_pooled(self, crops: Sequence[Crop]) -> tuple[Tensor, Tensor]:
        vectors = torch.tensor([[float(crop[0, 0, 0]), 1.0] for crop in crops])
        return vectors, torch.where(vectors == 7, float("inf"), vectors)


def test_a_vector_that_is_not_finite_is_left_out_and_counted_or_ends_the_evaluation(tmp_path: Path) -> None:
    model: Any = _Overflowing()
    cache = FeatureCache(open_store(str(tmp_path)), "model")
    listed = Listed([Example(f"k{colour}", Frames([colour] if colour else [])) for colour in (1, 7, 0, 2)])
    for _ in range(2):  # The second time, the vectors come from the cache.
        batches = Extraction(model, 3, (), cache).collect(listed, ALONE)
        assert batches is not None
        found = joined(batches, "listed")
        assert found.keys == ("k1", "k2")
        assert found.images[:, 0].tolist() == found.pooled[:, 0].tolist() == [1, 2]
        assert dict(found.reasons()) == {"vector is not finite": 1, "cannot be decoded": 1}
        assert {each.key: each.kind for each in found.left_out}["k7"] == "vector is not finite"
    whole = replace(listed, found=listed.found[:2], may_have_gaps=False)
    with pytest.raises(DataError, match=r"^k7: the vector is not finite; the weights of the model may be damaged\.$"):
        Extraction(model, 3).collect(whole, ALONE)
    with pytest.raises(DataError, match=r"no example that can be read; the first is k7 \(vector is not finite\)"):
        joined(Extraction(model, 3).collect(replace(listed, found=listed.found[1:2]), ALONE) or [], "listed")
