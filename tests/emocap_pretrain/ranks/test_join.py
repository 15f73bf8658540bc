import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pretrain_fakes import FakeRuntime, changed, stand_alone

from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.ranks.join import joined, lost_contact, use_threads

# What a rank of two sees of the other, as JSON on stdout; the config comes as its first argument.
TWO_RANKS = """
import json, sys
import torch.distributed as dist
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.ranks.join import joined

config, runtime = Config.model_validate_json(sys.argv[1]), EnvRuntime.from_environment("cpu")
rank = runtime.rank_info.rank
with joined(config.cluster, runtime) as world:
    seen = {
        "main": world.is_main,
        "share": world.broadcast_from_main({"from": rank}),
        "collect": world.gather(f"rank {rank}"),
        "any": [world.any_rank(False), world.any_rank(rank == 1), world.any_rank(True)],
    }
seen["left"] = not dist.is_initialized()
print(json.dumps(seen))
"""


def test_a_process_alone_shares_with_itself() -> None:
    world = RankGroup(Rank(), "cpu", None)
    assert world.is_main
    assert world.broadcast_from_main({"a": 1}) == {"a": 1}
    assert world.gather("a") == ["a"]
    assert world.any_rank(True)
    assert not world.any_rank(False)


def test_an_existing_process_group_is_used_and_not_ended(tiny_config: Config) -> None:
    stand_alone()
    with joined(tiny_config.cluster, FakeRuntime()) as world:
        assert world == RankGroup(Rank(), "cpu", None)
    assert dist.is_initialized()


def test_the_config_s_threads_win_over_the_launcher_s(tiny_config: Config) -> None:
    torch.set_num_threads(1)
    use_threads(changed(tiny_config, cluster__threads_per_rank=2).cluster, Rank())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("local_world", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_ranks_of_a_host_share_its_cores(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, local_world: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    place = Rank(0, 32, 0, local_world)
    use_threads(changed(tiny_config, cluster__threads_per_rank=None).cluster, place)
    assert torch.get_num_threads() == threads


def test_two_ranks_meet_share_and_part(tiny_config: Config, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = tmp_path / "rank.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, str(script), tiny_config.model_dump_json()]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        seen = [json.loads(each.communicate(timeout=60)[0]) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert [each["main"] for each in seen] == [True, False]
    for each in seen:
        assert each["share"] == {"from": 0}
        assert each["collect"] == ["rank 0", "rank 1"]
        assert each["any"] == [False, True, True]
        assert each["left"]


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_a_collective_without_its_peer_is_told_from_other_errors(message: str, lost: bool) -> None:
    assert lost_contact(RuntimeError(message)) is lost
    assert lost_contact(torch.distributed.DistNetworkError(message))
