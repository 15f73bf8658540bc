"""Tests what the user reads if Ray cannot be started."""

import pytest
import ray
from emocap_cluster.address import HERE
from emocap_cluster.cluster import connected
from emocap_cluster.errors import NoCluster


@pytest.mark.parametrize(
    "error", [Exception("The node timed out.\nIt is busy."), ConnectionError("The node timed out.")]
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("emocap_cluster.cluster.address_of_ray", lambda: HERE)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(NoCluster, match=r"^Ray cannot be started here: The node timed out\.$"), connected({}):
        pass
