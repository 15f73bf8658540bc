"""Tests that patch vectors are computed once, written in parts, and stored in the same order as their captions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from emocap_shards.writer import write_shards

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.generation import patches as module
from emocap_pretrain.generation.patches import PatchSettings, computed_patches, opened_patches


def test_patches_are_those_of_the_tower_in_the_order_of_the_dataset(embedder, faces, patches):
    examples = PackedSource(faces).examples(range(24))
    assert [image.key for image in patches.images] == [example.key for example in examples]
    assert [image.captions for image in patches.images] == [(each.captions[0].global_,) for each in examples]
    crop = examples[20].content.crops(embedder.model.pixels, "center")[0]
    with torch.inference_mode():
        pooled, expected = embedder.model.image.encode_image(torch.from_numpy(crop.transpose(2, 0, 1)[None].copy()))
    assert torch.allclose(patches.patches([20])[0], expected[0], atol=1e-2)
    (block,) = patches.pooled_blocks()
    assert np.allclose(block[20], pooled[0].numpy(), atol=1e-4)
    every = patches.patches(range(24))
    assert torch.allclose(patches.mean_patches(), every.mean(0), atol=1e-5)


def test_an_interrupted_computation_keeps_its_parts_and_gives_the_same_files(embedder, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_IMAGES", 10)
    monkeypatch.setattr(module, "BATCH", 5)
    settings = PatchSettings(part="summary", image_tokens=1)
    whole = computed_patches(embedder, faces, settings, tmp_path / "whole")
    assert [len(np.load(f"{path}.patches.npy")) for path in whole.parts] == [10, 10, 4]

    def stop(done, images):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        computed_patches(embedder, faces, settings, tmp_path / "again", report=stop)
    first = next((tmp_path / "again").rglob("part-000000.patches.npy"))
    before = first.stat().st_mtime_ns
    again = computed_patches(embedder, faces, settings, tmp_path / "again")
    assert first.stat().st_mtime_ns == before
    assert again.digest == whole.digest
    assert again.images == whole.images
    assert torch.equal(again.patches(range(24)), whole.patches(range(24)))
    assert opened_patches(tmp_path / "again", again.digest).images == whole.images


def test_another_setting_has_files_of_its_own(embedder, faces, tmp_path):
    found = {
        computed_patches(embedder, faces, settings, tmp_path).digest
        for settings in (PatchSettings(), PatchSettings(image_tokens=1), PatchSettings(part="local"))
    }
    assert len(found) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_images_that_cannot_be_used_are_counted(embedder, tmp_path):
    made = list(records(4, pixels=32))
    made[1] = replace(made[1], caption=replace(made[1].caption, summary=""))
    write_shards(made, str(tmp_path / "data"), samples_per_shard=4)
    found = computed_patches(embedder, str(tmp_path / "data"), PatchSettings(part="summary"), tmp_path / "patches")
    assert len(found) == 3
    assert found.left_out == {"no summary caption": 1}
    write_shards(made[1:2], str(tmp_path / "empty"), samples_per_shard=4)
    with pytest.raises(DataError, match=r"no image has a caption .1 x no summary caption"):
        computed_patches(embedder, str(tmp_path / "empty"), PatchSettings(part="summary"), tmp_path / "patches")


def test_a_label_gives_the_person_and_an_absent_label_is_named(embedder, faces, tmp_path):
    found = computed_patches(embedder, faces, PatchSettings(person="emotion"), tmp_path)
    assert {image.person for image in found.images} == {
        "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"--person who: .* has no such label; its labels are: AU1"):
        computed_patches(embedder, faces, PatchSettings(person="who"), tmp_path)


def test_an_empty_label_is_an_unknown_person(embedder, tmp_path):
    made = [
        replace(each, labels={"who": who}) for each, who in zip(records(4, pixels=32), ("", "a", "", "a"), strict=True)
    ]
    write_shards(made, str(tmp_path / "data"), samples_per_shard=4)
    found = computed_patches(embedder, str(tmp_path / "data"), PatchSettings(person="who"), tmp_path / "patches")
    first, _, third, _ = (image.key for image in found.images)
    assert [image.person for image in found.images] == [first, "a", third, "a"]


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--part whole: give one of global, summary, local"):
        PatchSettings(part="whole")
    with pytest.raises(ConfigError, match="--image-tokens 5: give a square"):
        PatchSettings(image_tokens=5)
    with pytest.raises(ConfigError, match="no patches of the training images"):
        opened_patches(tmp_path, "0" * 64)
