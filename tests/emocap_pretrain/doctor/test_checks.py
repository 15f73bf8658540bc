"""Tests each check of `emocap doctor` in a condition in which it really fails, and in one in which it does not."""

import os
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from emocap_shards.store import open_store

from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.schema import ClusterConfig, TrackingConfig
from emocap_pretrain.doctor import CHECKS, CheckResult, DoctorInputs, diagnose, gpus, host, services, storage, versions
from emocap_pretrain.doctor.gpus import GpuFacts, judged
from emocap_pretrain.doctor.versions import read_lock

# A mounted file system of the kernel that reports no free byte, and in which no file can be made.
FULL = Path("/proc")


def only(results: Iterator[CheckResult]) -> CheckResult:
    (result,) = results
    assert bool(result.cure) == (result.status in {"warn", "fail"}), "a result says what to do if there is something"
    return result


@contextmanager
def serving(*, status: int = 403, fast_s: float = 0.0) -> Iterator[str]:
    """Runs a web server that answers every request with this status, and whose clock is ahead by `fast_s` seconds."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=fast_s), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - names of the standard library

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def dead() -> Iterator[int]:
    """Yields a port on which no process listens. It is bound, so that no other process can use it."""
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "0.3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_every_check_has_a_name_of_its_own() -> None:
    assert len(dict(CHECKS)) == len(CHECKS)


# Python and versions


def test_a_check_that_raises_an_error_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: DoctorInputs) -> Iterator[CheckResult]:
        yield CheckResult("ok", "first")
        raise RuntimeError("no driver\nand more")

    monkeypatch.setattr("emocap_pretrain.doctor.diagnosis.CHECKS", [("a", broken), ("b", versions.check_python)])
    (_, first), (_, second), (name, third) = diagnose(DoctorInputs())
    assert (first.status, second.status, name, third.status) == ("ok", "fail", "b", "ok")
    assert second.text == "the check ended with RuntimeError: no driver"


def test_python_is_compared_with_the_versions_that_the_package_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(versions.check_python(DoctorInputs())).status == "ok"
    monkeypatch.setattr("platform.python_version", lambda: "3.10.14")
    old = only(versions.check_python(DoctorInputs()))
    assert old.status == "fail"
    assert "3.10.14" in old.text


def test_a_version_that_differs_from_the_list_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "freeze.txt"
    lock.write_text("numpy==1.0\npytest == 0.1\n# torch==1.0\nnot-installed-here==3\n")
    found = only(versions.check_versions(DoctorInputs(lock=lock)))
    assert found.status == "warn"
    assert "(tested: 1.0)" in found.text
    assert "(tested: 0.1)" in found.text
    assert "torch" not in found.text


def test_a_local_part_of_a_version_does_not_count(tmp_path: Path) -> None:
    lock = tmp_path / "freeze.txt"
    lock.write_text(f"torch=={torch.__version__.partition('+')[0]}+cu999\n")
    assert only(versions.check_versions(DoctorInputs(lock=lock))).status == "ok"


def test_a_requirement_that_no_installed_package_meets_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = tmp_path / "emocap_pretrain-9.dist-info"
    stated.mkdir()
    text = "Metadata-Version: 2.1\nName: emocap-pretrain\nVersion: 9\n"
    text += "Requires-Dist: numpy>=999\nRequires-Dist: no-such-package\nRequires-Dist: gone; extra == 'gpu'\n"
    (stated / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    first, second = versions.check_versions(DoctorInputs())
    assert first.status == "fail"
    assert "numpy" in first.text
    assert "no-such-package is not installed" in first.text
    assert "gone" not in first.text
    assert second.status == "skipped"


@pytest.mark.parametrize("content", [b"", b"numpy>=1\n", b"\xff\xfe"])
def test_a_list_without_versions_fails(content: bytes, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_bytes(content)
    assert only(versions.check_versions(DoctorInputs(lock=lock))).status == "fail"


def test_the_own_list_of_versions_is_read() -> None:
    assert len(read_lock(Path(__file__).parents[3] / "requirements.lock")) > 100


# GPUs: no host of the tests has a broken driver, so the facts are made.

GOOD = GpuFacts(
    driver="570.1",
    driver_cuda=(12, 8),
    present=2,
    torch_cuda=(12, 8),
    names=("NVIDIA H100 80GB HBM3",) * 2,
    capabilities=((9, 0),) * 2,
    architectures=("sm_80", "sm_90"),
    free_shares=(0.99, 0.99),
)


def facts(**changes: object) -> GpuFacts:
    return GpuFacts(**{name: getattr(GOOD, name) for name in GpuFacts.__dataclass_fields__} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "device", "status", "words"),
    [
        (GOOD, "auto", "ok", "2 x NVIDIA H100"),
        (GOOD, "cpu", "skipped", "uses no GPU"),
        (GpuFacts(), "auto", "skipped", "no NVIDIA GPU"),
        (GpuFacts(), "cuda", "fail", "no NVIDIA driver"),
        (GpuFacts(driver="570.1"), "cuda", "fail", "the driver reports no GPU"),
        (facts(torch_cuda=None), "auto", "fail", "built for CPUs"),
        (facts(torch_cuda=(13, 0)), "auto", "fail", "too old for torch"),
        (facts(torch_cuda=(12, 9)), "auto", "warn", "the driver is of CUDA 12.8"),
        (facts(names=(), capabilities=(), free_shares=(), fault="CUDA unknown error"), "auto", "fail", "unknown error"),
        (facts(names=(), capabilities=(), free_shares=()), "auto", "fail", "hidden"),
        (facts(architectures=("sm_70", "sm_80")), "auto", "fail", "no kernels for NVIDIA H100 80GB HBM3 (sm_90)"),
        (facts(free_shares=(0.99, 0.3)), "auto", "warn", "GPU 1 (70% used)"),
        (facts(present=8), "auto", "warn", "6 GPUs are hidden"),
    ],
)
def test_the_facts_about_gpus_are_judged(found: GpuFacts, device: str, status: str, words: str) -> None:
    result = only(iter([judged(found, device=device)]))
    assert (result.status, words in result.text) == (status, True), result.text


def test_a_host_without_a_gpu_cannot_run_a_config_that_needs_one() -> None:
    if gpus.gpu_facts().present:
        pytest.skip("this host has a GPU")
    assert only(gpus.check_gpus(DoctorInputs(cluster=ClusterConfig(device="cuda")))).status == "fail"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 9), True),
        (("sm_90a",), (9, 0), True),
        (("sm_90a",), (9, 1), False),
        (("sm_100",), (10, 0), True),
    ],
)
def test_architectures_run_on_capabilities(
    architectures: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    assert gpus.supports(architectures, capability) is runs


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch report two GPUs and NCCL, whatever this host has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(gpus.nccl, "version", lambda: (2, 27, 5))


@pytest.mark.usefixtures("two_gpus")
def test_an_nccl_that_is_missing_fails_or_sums_wrongly_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(count: int) -> list[float]:
        raise RuntimeError(f"NCCL Error 2: unhandled system error on {count} GPUs\nand more")

    def found(sums_of: Callable[[int], list[float]]) -> CheckResult:
        return only(gpus.check_nccl(DoctorInputs(), sums_of=sums_of))

    assert found(lambda _: [3.0, 3.0]).text == "NCCL 2.27.5, a sum over 2 GPUs is right"
    assert (found(breaks).status, found(breaks).text) == (
        "fail",
        "NCCL 2.27.5 fails: NCCL Error 2: unhandled system error on 2 GPUs",
    )
    wrong = found(lambda _: [3.0, 0.0])
    assert wrong.status == "fail"
    assert "wrong sums: [3.0, 0.0], where 3.0 is right" in wrong.text
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    missing = found(lambda _: pytest.fail("a build without NCCL was used"))
    assert (missing.status, "has no NCCL" in missing.text) == ("fail", True)


def test_nccl_is_not_checked_on_a_host_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(gpus.check_nccl(DoctorInputs())).status == "skipped"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_sum_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(gpus.check_nccl(DoctorInputs())).status == "ok"
    assert only(gpus.check_gpus(DoctorInputs())).status in {"ok", "warn"}
    monkeypatch.setattr(gpus.nccl, "all_reduce", lambda parts: [each.zero_() for each in parts])
    assert only(gpus.check_nccl(DoctorInputs())).status == "fail"


# Limits


def test_full_shared_memory_fails_and_little_of_it_is_a_warning(tmp_path: Path) -> None:
    data = DataConfig(url="x", workers=2, prefetch=4)
    full = DoctorInputs(data=data, batch_bytes=1000, shared_memory=FULL)
    assert only(host.check_shared_memory(full)).status == "fail"
    assert only(host.check_shared_memory(DoctorInputs(shared_memory=FULL))).status == "warn"
    assert only(host.check_shared_memory(DoctorInputs(shared_memory=tmp_path / "absent"))).status == "fail"
    free = shutil.disk_usage(tmp_path).free
    # 2 x 4 + 1 batches do not fit, and two do.
    large = DoctorInputs(data=data, batch_bytes=free // 4, shared_memory=tmp_path)
    assert only(host.check_shared_memory(large)).status == "warn"
    small = DoctorInputs(data=data, batch_bytes=1, shared_memory=tmp_path)
    assert only(host.check_shared_memory(small)).status == "ok"
    none = DoctorInputs(data=DataConfig(url="x", workers=0), batch_bytes=1000, shared_memory=FULL)
    assert only(host.check_shared_memory(none)).status == "ok"


@contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize(("limit", "status"), [(512, "fail"), (1024, "warn")])
def test_a_low_limit_of_open_files_is_reported(limit: int, status: str) -> None:
    with soft_limit(resource.RLIMIT_NOFILE, limit):
        assert only(host.check_open_files(DoctorInputs())).status == status


def test_a_limit_of_locked_memory_fails_if_there_is_an_infiniband_adapter(tmp_path: Path) -> None:
    with soft_limit(resource.RLIMIT_MEMLOCK, 65536):
        assert only(host.check_locked_memory(DoctorInputs(infiniband=tmp_path))).status == "skipped"
        (tmp_path / "mlx5_0").mkdir()
        found = only(host.check_locked_memory(DoctorInputs(infiniband=tmp_path)))
    assert found.status == "fail"
    assert "mlx5_0" in found.text


# Disks and stores


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = list(storage.check_disk(DoctorInputs(url=str(FULL / "run"))))
    assert [each.status for each in results] == ["ok", "fail"]
    assert "0 B free" in results[1].text
    monkeypatch.chdir(FULL)
    assert [each.status for each in storage.check_disk(DoctorInputs())] == ["ok", "fail"]


def test_a_disk_without_room_for_the_checkpoints_fails(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    inputs = DoctorInputs(url=str(tmp_path / "run"), checkpoint_bytes=free // 3, keep_last=3)
    assert [each.status for each in storage.check_disk(inputs)] == ["ok", "fail"]


def test_a_cache_that_exceeds_its_disk_is_a_warning(tmp_path: Path) -> None:
    data = DataConfig(url="s3://b/x", cache=str(tmp_path), cache_gb=1e6)
    inputs = DoctorInputs(url="s3://b/run", data=data, datasets={"data.url": "s3://b/x"})
    assert [each.status for each in storage.check_disk(inputs)] == ["ok", "warn"]


def test_a_dataset_is_read_and_its_speed_is_measured(faces: str) -> None:
    found = only(storage.check_datasets(DoctorInputs(datasets={"data.url": faces}, probe_bytes=4096)))
    assert found.text.startswith("data.url: 4.1 kB at ")


@pytest.mark.parametrize(("place", "advice"), [("folder", "to a faster disk"), ("memory://slow", "in the same region")])
def test_a_store_that_reads_less_than_20_mb_in_a_second_is_a_warning(
    place: str, advice: str, faces: str, tmp_path: Path
) -> None:
    url = place if "://" in place else str(tmp_path / place)
    for file in Path(faces).iterdir():
        open_store(url).put(file.name, file.read_bytes())

    def found(took_s: float) -> CheckResult:
        inputs = DoctorInputs(datasets={"data.url": url}, probe_bytes=20_000)
        return only(storage.check_datasets(inputs, clock=iter([5.0, 5.0 + took_s]).__next__))

    enough, slow = found(0.9e-3), found(1.1e-3)
    assert (enough.status, slow.status) == ("ok", "warn")
    assert "20 kB at 18.2 MB/s" in slow.text
    assert advice in slow.cure


class OtherBytes:
    """Imitates a store that returns other bytes than were written, or ignores conditions."""

    def __init__(self, *, wrong: bool) -> None:
        self.inner, self.wrong = open_store("memory://doctor/other"), wrong

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def read(self, path: str) -> bytes:
        return self.inner.read(path)[int(self.wrong) :]

    def honours_conditions(self) -> bool:
        return False


def test_a_run_folder_that_changes_bytes_fails_and_one_that_ignores_conditions_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wrong, status, words in ((True, "fail", "returns other bytes"), (False, "warn", "ignores conditions")):
        monkeypatch.setattr(storage, "_soon", lambda _, wrong=wrong: OtherBytes(wrong=wrong))
        result = only(storage.check_run_folder(DoctorInputs(url="memory://doctor/other")))
        assert (result.status, words in result.text) == (status, True), result.text


def test_a_dataset_that_lacks_a_shard_or_a_part_of_it_fails(faces: str, tmp_path: Path) -> None:
    copy = tmp_path / "faces"
    shutil.copytree(faces, copy)
    first = min(copy.glob("*.tar"))
    os.truncate(first, 2048)
    inputs = DoctorInputs(datasets={"data.url": str(copy)})
    assert "shorter than its manifest says" in only(storage.check_datasets(inputs)).text
    first.unlink()
    assert only(storage.check_datasets(inputs)).status == "fail"
    (copy / "manifest.json").unlink()
    assert only(storage.check_datasets(inputs)).status == "fail"


def test_a_store_that_refuses_and_a_dead_endpoint_fail(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(status=403) as refusing:
        assert only(storage.check_datasets(DoctorInputs(datasets={"data.url": f"{refusing}/x"}))).status == "fail"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing-at-all")
    found = only(storage.check_datasets(DoctorInputs(datasets={"data.url": "s3://bucket/x"})))
    assert found.status == "fail"
    assert "nothing-at-all" not in found.text
    assert only(storage.check_run_folder(DoctorInputs(url="s3://bucket/run"))).status == "fail"


def test_a_run_folder_is_written_and_nothing_is_left(tmp_path: Path) -> None:
    assert only(storage.check_run_folder(DoctorInputs(url=str(tmp_path / "deep" / "run")))).status == "ok"
    assert list(tmp_path.iterdir()) == []
    assert only(storage.check_run_folder(DoctorInputs(url="memory://doctor/run"))).status == "ok"


def test_a_run_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert only(storage.check_run_folder(DoctorInputs(url=str(FULL / "run")))).status == "fail"
    file = tmp_path / "file"
    file.touch()
    assert only(storage.check_run_folder(DoctorInputs(url=str(file / "run")))).status == "fail"
    with serving(status=403) as server:  # Web servers are read-only stores.
        assert only(storage.check_run_folder(DoctorInputs(url=f"{server}/run"))).status == "fail"


# Services


def test_a_dead_ray_cluster_fails(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{dead}")
    assert only(services.check_ray(DoctorInputs())).status == "fail"


def test_a_cluster_that_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert address in only(services.check_ray(DoctorInputs())).text


def test_a_port_of_ray_that_is_taken_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(services, "RAY_PORT", listener.getsockname()[1])
        assert only(services.check_ray(DoctorInputs())).status == "warn"
    assert only(services.check_ray(DoctorInputs())).status == "ok"


@pytest.mark.parametrize(("fast_s", "status"), [(0, "ok"), (300, "warn"), (-300, "warn"), (3600, "fail")])
def test_a_clock_that_differs_from_that_of_the_store_is_reported(fast_s: float, status: str) -> None:
    with serving(fast_s=fast_s) as server:
        found = only(services.check_clock(DoctorInputs(url="/run", datasets={"data.url": f"{server}/x"})))
    assert found.status == status
    assert ("slow" in found.text, "fast" in found.text) == (fast_s > 0, fast_s < 0)


def test_a_url_with_a_wrong_port_has_no_clock() -> None:
    assert only(services.check_clock(DoctorInputs(url="http://127.0.0.1:abc/run"))).status == "skipped"


def test_a_config_for_cpus_does_not_use_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpus.nccl, "all_reduce", lambda _: pytest.fail("a GPU was used"))
    assert only(gpus.check_nccl(DoctorInputs(cluster=ClusterConfig(device="cpu")))).status == "skipped"


def test_the_clock_of_an_s3_server_is_found_by_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(fast_s=3600) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        inputs = DoctorInputs(url="s3://bucket/run", datasets={"data.url": "s3://bucket/x"})
        assert only(services.check_clock(inputs)).status == "fail"


def test_mlflow_is_written(tmp_path: Path, new_mlflow: Callable[[Path], str]) -> None:
    from mlflow.tracking import MlflowClient

    settings = TrackingConfig(uri=new_mlflow(tmp_path / "mlflow.db"), artifacts=str(tmp_path / "artifacts"))
    assert only(services.check_mlflow(DoctorInputs(tracking=settings))).status == "ok"
    client = MlflowClient(settings.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'emocap-doctor'")
    assert client.search_runs([experiment.experiment_id]) == []
    assert client.get_experiment_by_name(settings.experiment) is None


def test_an_mlflow_that_is_dead_or_refuses_or_is_damaged_fails(dead: int, tmp_path: Path) -> None:
    def found(uri: str) -> CheckResult:
        return only(services.check_mlflow(DoctorInputs(tracking=TrackingConfig(uri=uri, artifacts=str(tmp_path)))))

    assert found(f"http://127.0.0.1:{dead}").status == "fail"
    with serving(status=403) as server:
        refused = found(server.replace("http://", "http://user:open-sesame@"))
    assert refused.status == "fail"
    assert "open-sesame" not in refused.text
    damaged = tmp_path / "mlflow.db"
    damaged.write_text("this is not a database" * 100)
    assert found(f"sqlite:///{damaged}").status == "fail"
    assert found("sqlite:////proc/mlflow.db").status == "fail"
