import json
import pickle
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.errors import BudgetSpent, DamagedSample, StoreError
from emocap_shards.store import open_store
from pretrain_fakes import ThreadRanks, on_ranks

from emocap_pretrain.data.quarantine import QUARANTINE_FILE, Quarantine
from emocap_pretrain.errors import LostContact
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import QUARANTINE, QuarantineDocument, QuarantinedSample


def damage(key: str) -> DamagedSample:
    return DamagedSample.at("shard-000001.tar", key, "its CRC-32C is wrong")


def settled(met: Sequence[Sequence[str]], budget: int, url: str) -> list[Quarantine | Exception]:
    """Runs ranks that add these samples to a quarantine and exchange them once."""

    def act(world: ThreadRanks) -> Quarantine:
        quarantine = Quarantine(open_store(url), world, budget)  # pyright: ignore[reportArgumentType]
        quarantine.add(map(damage, met[world.rank]), step=7)
        quarantine.exchange()
        return quarantine

    return on_ranks(len(met), act)


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def keys(rows: Sequence[QuarantinedSample]) -> list[str]:
    return [row.key for row in rows]


def stored(url: str) -> list[dict[str, Any]]:
    return json.loads(open_store(url).read(QUARANTINE_FILE))["samples"]


def test_every_rank_knows_the_samples_of_all_ranks_and_rank_0_writes_them(url: str) -> None:
    ranks = settled([["a"], [], ["b", "a"]], 5, url)
    assert all(isinstance(rank, Quarantine) and keys(rank.rows) == ["a", "b"] for rank in ranks)
    (first, _) = stored(url)
    assert first == {"shard": "shard-000001.tar", "key": "a", "reason": "its CRC-32C is wrong", "step": 7}


def test_a_spent_budget_ends_every_rank_and_the_report_names_all(url: str) -> None:
    ranks = settled([["a", "b"], ["c"]], 2, url)
    assert all(isinstance(rank, BudgetSpent) for rank in ranks)
    assert "data.error_budget=2 is used up: 3 damaged samples, the last 'c' of shard-000001.tar" in str(ranks[1])
    assert [each["key"] for each in stored(url)] == ["a", "b", "c"]


def test_a_list_that_rank_0_cannot_write_is_an_error_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / QUARANTINE_FILE).mkdir()
    first, second = settled([["a"], ["b"]], 5, str(tmp_path))
    assert isinstance(first, OSError | StoreError)
    assert isinstance(second, LostContact)
    assert str(second).startswith("rank 0 failed: ")
    assert QUARANTINE_FILE in str(second)


def test_nothing_is_logged_or_written_without_damage(url: str) -> None:
    ranks = settled([[], []], 3, url)
    assert all(isinstance(rank, Quarantine) and rank.rows == [] for rank in ranks)
    assert not open_store(url).exists(QUARANTINE_FILE)


def test_a_later_attempt_knows_the_samples_that_were_found_before(url: str) -> None:
    settled([["a"]], 3, url)
    again = Quarantine.open(open_store(url), RankGroup(Rank(), "cpu", None), 3)
    again.add([damage("a"), damage("b")], step=9)
    assert keys(again.exchange()) == ["b"]
    assert keys(again.rows) == [each["key"] for each in stored(url)] == ["a", "b"]
    assert again.exchange() == []


def test_an_attempt_after_a_spent_budget_raises_and_does_not_train(url: str) -> None:
    settled([["a", "b", "c"]], 2, url)
    alone = RankGroup(Rank(), "cpu", None)
    with pytest.raises(BudgetSpent, match=r"3 damaged samples, the last 'c' .* delete that file"):
        Quarantine.open(open_store(url), alone, 2)
    assert len(Quarantine.open(open_store(url), alone, 3).rows) == 3


def test_ranks_that_end_alone_write_their_samples_and_keep_those_of_others(url: str) -> None:
    settled([["a"]], 5, url)

    def act(world: ThreadRanks) -> None:
        quarantine = Quarantine(open_store(url), world, 2)  # pyright: ignore[reportArgumentType]
        quarantine.add([damage(f"pending-{world.rank}")], step=8)
        with quarantine.recorded(step=9):
            raise BudgetSpent("used up", damaged=(damage(f"then-{world.rank}"),))

    assert [str(each) for each in on_ranks(3, act)] == ["used up"] * 3
    found = storage.read(open_store(url), QUARANTINE_FILE, QUARANTINE)
    assert isinstance(found, QuarantineDocument)
    expected = {"a"} | {f"{when}-{rank}" for when in ("pending", "then") for rank in range(3)}
    assert {sample.key for sample in found.samples} == expected


def test_a_spent_budget_names_its_samples_in_another_process_too() -> None:
    error = pickle.loads(pickle.dumps(BudgetSpent("used up", damaged=(damage("a"),))))
    assert str(error) == "used up"
    assert [(each.shard, each.key, each.reason) for each in error.damaged] == [
        ("shard-000001.tar", "a", "its CRC-32C is wrong")
    ]
