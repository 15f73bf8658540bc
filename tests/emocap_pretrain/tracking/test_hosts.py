import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.tracking import hosts
from emocap_pretrain.tracking.hosts import NAMES, HostMetrics, JobHostMetrics, by_host, gpu_count


class FakeNvml:
    """Imitates NVML with two GPUs. The second one reports neither utilization nor power, like a MIG slice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("Init", "DeviceGetCount", "DeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name))
        for name in ("MemoryInfo", "UtilizationRates", "PowerUsage"):
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", getattr(self, name))

    def Init(self) -> None: ...  # noqa: N802

    def DeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def DeviceGetHandleByIndex(self, gpu: int) -> int:  # noqa: N802
        return gpu

    def MemoryInfo(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=20_000_000 * (gpu + 1), total=80_000_000)

    def UtilizationRates(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=97) if gpu == 0 else self.refuse()

    def PowerUsage(self, gpu: int) -> int:  # noqa: N802
        return 650_500 if gpu == 0 else self.refuse()

    def refuse(self) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Replaces the counters of the host's network cards and the clock, and returns the values that tests may change."""
    cards = {"lo": SimpleNamespace(bytes_recv=10**12, bytes_sent=10**12)}
    cards |= {name: SimpleNamespace(bytes_recv=5 * 10**6, bytes_sent=0) for name in ("eth0", "ib0")}
    fake: dict[str, Any] = {"cards": cards, "now": 100.0}
    monkeypatch.setattr(hosts.psutil, "net_io_counters", lambda **_: fake["cards"])
    monkeypatch.setattr(hosts.time, "monotonic", lambda: fake["now"])
    return fake


def test_a_host_without_a_gpu_reports_nan_for_gpus() -> None:
    host = HostMetrics(gpus=1)
    time.sleep(0.05)
    reading = host.read()
    assert tuple(reading) == host.names
    assert tuple(reading)[: len(NAMES)] == NAMES
    assert all(0 <= reading[name] <= 100 for name in NAMES if name.endswith("percentage"))
    assert reading["system_memory_usage_megabytes"] > 100
    if gpu_count() == 0:
        assert all(math.isnan(reading[name]) for name in host.names[len(NAMES) :])


def test_network_rates_are_since_the_last_reading_over_all_cards_but_the_loopback(traffic: dict[str, Any]) -> None:
    host = HostMetrics()
    for card in traffic["cards"].values():
        card.bytes_recv += 30 * 10**6
        card.bytes_sent += 10**6
    traffic["now"] += 10.0
    reading = host.read()
    assert reading["network_receive_megabytes_per_second"] == pytest.approx(6.0)
    assert reading["network_transmit_megabytes_per_second"] == pytest.approx(0.2)
    traffic["now"] += 10.0
    assert host.read()["network_receive_megabytes_per_second"] == 0.0


def test_two_readings_at_the_same_time_do_not_divide_by_zero(traffic: dict[str, Any]) -> None:
    assert HostMetrics().read()["network_receive_megabytes_per_second"] == 0.0


def test_the_measured_disk_is_the_disk_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def usage(path: str) -> Any:
        asked.append(path)
        return SimpleNamespace(percent=40.0, free=2_000_000)

    monkeypatch.setattr(hosts.psutil, "disk_usage", usage)
    reading = HostMetrics(folder=tmp_path).read()
    assert asked == [str(tmp_path)]
    assert (reading["disk_usage_percentage"], reading["disk_available_megabytes"]) == (40.0, 2.0)


def test_values_that_a_gpu_does_not_report_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch)
    assert gpu_count() == 2
    reading = HostMetrics(gpus=3).read()
    gpu = {name: value for name, value in reading.items() if name.startswith("gpu_")}
    assert gpu["gpu_0_utilization_percentage"] == 97
    assert gpu["gpu_0_memory_usage_megabytes"] == 20.0
    assert gpu["gpu_0_memory_usage_percentage"] == 25.0
    assert gpu["gpu_0_power_usage_watts"] == 650.5
    assert gpu["gpu_1_memory_usage_percentage"] == 50.0
    assert math.isnan(gpu["gpu_1_utilization_percentage"])
    assert math.isnan(gpu["gpu_1_power_usage_watts"])
    assert all(math.isnan(value) for name, value in gpu.items() if name.startswith("gpu_2"))


def test_a_broken_driver_is_a_warning_and_only_the_metrics_of_gpus_are_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", broken)
    assert gpu_count() == 0
    assert "the metrics of this host's GPUs are not available" in caplog.text


def test_metrics_of_the_job_are_gathered_once_in_an_interval(tmp_path: Path) -> None:
    metrics = JobHostMetrics(RankGroup(Rank(), "cpu", None), tmp_path / "cache")
    host = f"system/{socket.gethostname()}/"
    gathered = [metrics.named([metrics.read(step)], step, step_s=5.0) for step in range(1, 8)]
    assert [bool(row) for row in gathered] == [True, False, False, True, False, False, True]
    assert {f"{host}{name}" for name in NAMES} <= gathered[0].keys()


def test_metrics_of_all_hosts_have_the_host_in_their_names_and_nan_is_left_out() -> None:
    readings = [("node-a", {"cpu_utilization_percentage": 5.0, "gpu_0_utilization_percentage": math.nan})]
    readings += [("node-b", {"cpu_utilization_percentage": 7.0, "gpu_0_utilization_percentage": 90.0})]
    assert by_host(readings) == {
        "system/node-a/cpu_utilization_percentage": 5.0,
        "system/node-b/cpu_utilization_percentage": 7.0,
        "system/node-b/gpu_0_utilization_percentage": 90.0,
    }


def test_the_names_are_those_of_mlflow_except_the_rates() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        theirs |= monitor.metrics.keys()
    assert {name for name in NAMES if not name.endswith("per_second")} <= theirs
