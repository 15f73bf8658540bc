from pathlib import Path

import pytest
import torch
from emocap_shards.store import open_store
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.settings import completed
from emocap_pretrain.model.timm_image import timm
from emocap_pretrain.run_folder.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Returns a folder in the layout of timm. The mean and std of its tower differ from those of timm's registry."""
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **options)
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    timm.models.save_for_hf(
        model, tmp_path / "tower", model_config={"pretrained_cfg": statistics, "model_args": options}
    )
    return tmp_path / "tower"


def with_image(config: Config, **settings) -> Config:
    return changed(config, model__image=settings)


def test_the_weights_of_an_image_tower_give_the_settings_that_the_user_leaves_out(tiny_config, folder):
    image = completed(with_image(tiny_config, pretrained=str(folder))).model.image
    assert (image.name, image.pixels, image.options["embed_dim"]) == ("vit_tiny_patch16_224", 32, 16)
    assert (image.mean, image.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def test_settings_of_the_user_come_before_those_of_the_weights(tiny_config, folder):
    image = completed(with_image(tiny_config, pretrained=str(folder), pixels=64, std=(0.5, 0.5, 0.5))).model.image
    assert (image.pixels, image.mean, image.std) == (64, (0.4, 0.5, 0.6), (0.5, 0.5, 0.5))


def test_a_file_without_a_description_and_the_hub_change_no_setting(tiny_config, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for source in ("hub", str(tmp_path / "weights.pth")):
        config = with_image(tiny_config, name="vit_tiny_patch16_224", pretrained=source)
        assert completed(config) == config


def test_a_run_that_has_begun_needs_its_weights_no_more(tiny_config, folder, tmp_path):
    given = with_image(tiny_config, pretrained=str(folder))
    first = completed(given)
    RunFolder(open_store(given.url)).write_run(first, "abc")
    folder.rename(tmp_path / "elsewhere")
    assert completed(given).stored() == first.stored()
    with pytest.raises(ConfigError, match="give 'hub', or an existing file or folder"):
        completed(with_image(tiny_config, pretrained=f"{folder}-2"))
