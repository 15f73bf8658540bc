"""Tests the interpolation of weights between the start of a run and its end."""

import pytest
import torch

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.interpolation import interpolated

START = {"matrix": torch.tensor([[0.1, -3.0]]), "scale": torch.tensor([2.0]), "count": torch.tensor(3)}
TRAINED = {"matrix": torch.tensor([[0.3, 1.0]]), "scale": torch.tensor([4.0]), "count": torch.tensor(7)}


def test_each_number_lies_between_its_two_values() -> None:
    found = interpolated(START, TRAINED, 0.25)
    torch.testing.assert_close(found["matrix"], torch.tensor([[0.15, -2.0]]))
    assert found["scale"].item() == 2.5
    assert found["count"].item() == 7, "integers are not interpolated"


@pytest.mark.parametrize(("share", "wanted"), [(0.0, START), (1.0, TRAINED)])
def test_the_ends_are_the_two_models_to_the_bit(share: float, wanted: dict[str, torch.Tensor]) -> None:
    found = interpolated(START, TRAINED, share)
    assert found["matrix"].equal(wanted["matrix"])
    assert found["scale"].equal(wanted["scale"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**START, "matrix": torch.zeros(2, 2)}, r"matrix has shape \(2, 2\) in the first and \(1, 2\) in the second"),
        ({"matrix": START["matrix"], "count": START["count"]}, "scale has shape None in the first"),
        ({**START, "bias": torch.zeros(1)}, r"bias has shape \(1,\) in the first and None in the second"),
    ],
)
def test_models_that_differ_in_a_tensor_are_refused_by_its_name(other: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        interpolated(other, TRAINED, 0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="a share from 0 to 1"):
        interpolated(START, TRAINED, share)
