import os
import signal
from collections.abc import Iterator, Mapping

import pytest

from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.ranks.runtime import EnvRuntime, Runtime, launched

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"),
)
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
DEEPSPEED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes the variables of launchers, and restores the signal handlers afterwards."""
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")  # The runtime writes them itself: this has them removed afterwards.
        del os.environ[name]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def under(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> EnvRuntime:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return EnvRuntime.from_environment("cpu")


def test_a_process_without_a_launcher_is_alone() -> None:
    assert not launched()
    assert EnvRuntime.from_environment("cpu").rank_info == Rank(0, 1, 0, 1)


@pytest.mark.parametrize("variables", [TORCHRUN, DEEPSPEED, SLURM], ids=["torchrun", "deepspeed", "slurm"])
def test_every_launcher_s_variables_say_the_same_place(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = under(variables, monkeypatch)
    assert launched()
    assert runtime.rank_info == Rank(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert runtime.device == "cpu"
    assert isinstance(runtime, Runtime)


def test_torchrun_s_variables_win_inside_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert under(SLURM | {"SLURM_PROCID": "0"} | TORCHRUN, monkeypatch).rank_info.rank == 5
    assert "MASTER_ADDR" not in os.environ


def test_a_shell_in_a_slurm_allocation_of_one_task_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert under(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, monkeypatch).rank_info == Rank()
    assert not launched()


def test_a_batch_script_that_holds_many_slurm_tasks_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    under({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "batch"}, monkeypatch)
    assert not launched()


def test_a_driver_on_a_ray_cluster_that_srun_started_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    under(SLURM | {"RAY_ADDRESS": "10.0.0.1:6379"}, monkeypatch)
    assert not launched()


@pytest.mark.parametrize(
    ("layout", "counts"),
    [("2(x2)", [2, 2]), ("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("3,1(x2),2", [3, 1, 1, 2])],
)
def test_slurm_s_layouts_say_how_many_ranks_each_node_has(
    layout: str, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, count in enumerate(counts):
        variables = SLURM | {"SLURM_NODEID": str(node), "SLURM_STEP_TASKS_PER_NODE": layout}
        assert under(variables, monkeypatch).rank_info.local_world_size == count


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,09],login", "gpu03"),
        ("a-1,b-[2-3]", "a-1"),
        ("rack[1-2]-node[07,9]-ib", "rack1-node07-ib"),
    ],
)
def test_ranks_of_slurm_meet_on_the_first_node_of_the_step(
    nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    under(SLURM | {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "7000001"}, monkeypatch)
    assert os.environ["MASTER_ADDR"] == first
    assert os.environ["MASTER_PORT"] == "12001"


def test_an_address_that_the_batch_script_gives_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    under(SLURM | {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "29500"}, monkeypatch)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.9", "29500")


def test_without_a_count_of_local_ranks_all_are_taken_to_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert under({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, monkeypatch).rank_info.local_world_size == 2


def test_no_cuda_means_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert EnvRuntime.from_environment("auto").device == "cpu"


@pytest.mark.parametrize(("visible", "device"), [(8, "cuda:1"), (1, "cuda:0")])
def test_a_rank_s_device_is_its_local_rank_or_the_only_one_that_it_sees(
    visible: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert EnvRuntime.from_environment("auto").device == device


def test_sigterm_asks_to_stop_and_ends_nothing() -> None:
    runtime = EnvRuntime.from_environment("cpu")
    assert not runtime.should_stop()
    signal.raise_signal(signal.SIGTERM)
    assert runtime.should_stop()


def test_the_first_ctrl_c_asks_to_stop_and_the_second_ends_the_process() -> None:
    runtime = EnvRuntime.from_environment("cpu")
    signal.raise_signal(signal.SIGINT)
    assert runtime.should_stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_heartbeat_shows_the_step_and_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = EnvRuntime.from_environment("cpu")
    runtime.heartbeat(3, 4, "loss 1.0")
    runtime.heartbeat(4, 4, "loss 0.5")
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss 0.5" in shown
