from typing import Any

import pytest
from pretrain_fakes import changed

from emocap_pretrain.config import stored
from emocap_pretrain.config.load import from_stored
from emocap_pretrain.config.schema import Config
from emocap_pretrain.config.stored import Migration
from emocap_pretrain.errors import ConfigError

RENAMED = Migration(renamed={"optimizer.rate": "optimizer.lr", "towers": "model"})
DROPPED = Migration(dropped={"objective.margin": 0.0})


def test_stored_settings_are_current_and_say_which_keys_were_set(tiny_config: Config) -> None:
    tree = stored.dump(tiny_config)
    assert {"schema", "set"} <= tree.keys()
    assert "optimizer.lr" in tree["set"]
    assert "optimizer.eps" not in tree["set"]
    assert stored.current(tree) == tiny_config.stored()
    assert from_stored(tree) == tiny_config


def test_renamed_settings_and_sections_are_migrated_over_several_versions(tiny_config: Config) -> None:
    tree = tiny_config.stored()
    tree["towers"] = tree.pop("model")
    tree["optimizer"]["rate"] = tree["optimizer"].pop("lr")
    tree["objective"]["margin"] = 0.0
    assert stored.current(tree, migrations=(RENAMED, DROPPED)) == tiny_config.stored()
    assert stored.current(tiny_config.stored() | {"schema": 2}, migrations=(RENAMED, DROPPED)) == tiny_config.stored()


def test_a_dropped_setting_that_did_something_is_refused(tiny_config: Config) -> None:
    tree = tiny_config.stored()
    tree["objective"]["margin"] = 0.2
    with pytest.raises(ConfigError, match=r"objective\.margin=0\.2; this version always behaves as with 0\.0"):
        stored.current(tree, migrations=(DROPPED,))


def test_an_evaluation_needs_to_know_the_settings_of_the_model_alone(tiny_config: Config) -> None:
    tree = stored.dump(tiny_config)
    tree["optimizer"]["novel"] = tree["novel"] = 1
    tree["set"] += ["optimizer.novel", "novel"]
    assert from_stored(tree) == tiny_config
    tree["model"]["image"]["novel"] = 1
    tree["set"].append("model.image.novel")
    with pytest.raises(ConfigError, match=r"model\.image\.novel=1, which this version does not know"):
        from_stored(tree)


@pytest.fixture
def mixed_tree(tiny_config: Config) -> dict[str, Any]:
    """Returns the stored settings of a newer version, in which each dataset of a mixture has a setting `novel`."""
    mix = [{"url": "/a"}, {"url": "/b", "weight": 2.0}]
    tree = stored.dump(changed(tiny_config, data__url=None, data__mix=mix))
    for entry in tree["data"]["mix"]:
        entry["novel"] = 1
    return tree


def test_an_unknown_setting_of_a_dataset_that_nobody_set_is_ignored(mixed_tree: dict[str, Any]) -> None:
    assert {"data.mix.0.url", "data.mix.1.url", "data.mix.1.weight"} <= set(mixed_tree["set"])
    assert "data.mix.0.weight" not in mixed_tree["set"]
    assert stored.current(mixed_tree) == stored.current(from_stored(mixed_tree).stored())


def test_an_unknown_setting_of_a_dataset_that_was_set_is_named(
    mixed_tree: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    mixed_tree["set"].append("data.mix.1.novel")
    with pytest.raises(ConfigError, match=r"data\.mix\.1\.novel=1, which this version does not know"):
        stored.current(mixed_tree)
    from_stored(mixed_tree)  # An evaluation reads no settings of `data`.
    assert [record.getMessage() for record in caplog.records] == [
        "the stored setting data.mix.1.novel is unknown to this version and is ignored"
    ]


def test_an_unknown_setting_may_have_a_dot_in_its_name(tiny_config: Config) -> None:
    assert stored.current(stored.dump(tiny_config) | {"a.b": 1}) == tiny_config.stored()


def test_entries_of_a_mixture_get_their_defaults(tiny_config: Config) -> None:
    tree = tiny_config.stored()
    tree["data"]["url"], tree["data"]["mix"] = None, [{"url": "/a"}, {"url": "/b", "weight": 2.0}]
    defaults = {"weight": None, "balance": True, "filter": None}
    found = stored.current(tree)["data"]["mix"]
    assert found == [{**defaults, "url": "/a"}, {**defaults, "url": "/b", "weight": 2.0}]
