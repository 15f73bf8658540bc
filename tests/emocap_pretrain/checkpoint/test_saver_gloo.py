import json
import os
import socket
import subprocess
import sys
from pathlib import Path

# The script of one of two ranks over gloo: it runs collectives while checkpoints are saved, and prints JSON.
TWO_RANKS = """
import json, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from emocap_shards.errors import StoreError
from emocap_shards.store import open_store
from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt

runtime = EnvRuntime.from_environment("cpu")
rank = runtime.rank_info.rank
dist.init_process_group("gloo", rank=rank, world_size=2)
world = RankGroup(runtime.rank_info, "cpu", dist.group.WORLD)
store = open_store(sys.argv[1])
saver, heard, error = Saver(store, world, run_attempt=Attempt(store, 0), retention=Retention(100)), [], ""

def write(folder):
    time.sleep(0.02 * rank)
    (folder / f"rank-{rank}").write_bytes(bytes(100_000))

for step in range(1, 201):
    total = torch.ones(1000)
    dist.all_reduce(total)
    assert bool((total == 2).all())
    if step % 10 == 0:
        saver.save(step, {"step": step}, write)
    heard += [(step, each.step) for each in saver.finished()]
heard += [(200, each.step) for each in saver.wait()]

def fail(folder):
    if rank == 1:
        raise OSError("the disk is gone")

saver.save(300, {}, fail)
try:
    saver.wait()
except CheckpointError as caught:
    error = str(caught)
with resumable(store, world, lambda _, path: path == f"rank-{rank}") as found:
    resumed = [found[0].step, sorted(each.name for each in found[1].iterdir())]
print(json.dumps({"heard": heard, "error": error, "resumed": resumed}))
sys.stdout.flush()
dist.destroy_process_group()
"""


def test_two_ranks_save_over_gloo_while_they_train(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = tmp_path / "rank.py"
    script.write_text(TWO_RANKS)
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run")],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        first, second = [json.loads(each.communicate(timeout=90)[0]) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert first["heard"] == second["heard"], "all ranks learn of a checkpoint at the same step"
    assert [step for _, step in first["heard"]] == list(range(10, 201, 10))
    assert first["error"] == second["error"] == "the checkpoint of step 300 was not saved: rank 1: the disk is gone"
    assert first["resumed"] == [200, ["rank-0"]]
    assert second["resumed"] == [200, ["rank-1"]]
