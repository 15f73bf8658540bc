import pytest
import torch
from emocap_kernels.errors import NumericalError
from emocap_kernels.numerics import SLACK_ROUNDINGS, allowed_distance, distance, require_accurate

EXACT = torch.tensor([1.0, 2.0], dtype=torch.float64)


def test_the_distance_is_the_largest_difference_and_infinite_for_nan():
    assert distance(torch.tensor([1.0, 2.5]), EXACT) == 0.5
    assert distance(torch.tensor([float("nan"), 2.0]), EXACT) == float("inf")
    assert distance(torch.zeros(0), torch.zeros(0)) == 0.0


def test_the_allowed_distance_is_that_of_eager_code_and_a_few_roundings():
    eager = torch.tensor([1.0, 2.0 + 2**-10])
    assert allowed_distance(eager, EXACT, magnitude=1.0) == 2**-10 + SLACK_ROUNDINGS * 2**-23


def test_a_result_as_far_as_eager_code_is_accurate_and_a_further_one_is_not():
    eager, further = torch.tensor([1.0, 2.001]), torch.tensor([1.0, 2.0012])
    require_accurate("it", eager, eager, EXACT, magnitude=1.0)
    with pytest.raises(NumericalError, match=r"it is 1\.2"):
        require_accurate("it", further, eager, EXACT, magnitude=1.0)


def test_nan_and_another_shape_are_never_accurate():
    nan = torch.tensor([float("nan"), 2.0])
    with pytest.raises(NumericalError):
        require_accurate("it", nan, EXACT.float(), EXACT, magnitude=1e9)
    with pytest.raises(NumericalError, match="shape"):
        require_accurate("it", EXACT[:1].float(), EXACT.float(), EXACT, magnitude=1e9)
