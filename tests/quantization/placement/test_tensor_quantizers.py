"""Which scheme the quantizer of a tensor has."""

from tfcompress.quantization.observers import LeastSquares, MinMax, MovingAverage
from tfcompress.quantization.placement.tensor_quantizers import input_scheme, unclipped_scheme
from tfcompress.quantization.schemes import ActivationScheme


def test_inputs_are_observed_by_all_values_ever_seen():
    assert input_scheme(ActivationScheme()).observer == MinMax()
    chosen = ActivationScheme(observer=LeastSquares())
    assert input_scheme(chosen) is chosen


def test_tensors_whose_largest_values_decide_have_no_estimator_that_clips():
    chosen = ActivationScheme(observer=LeastSquares())
    assert unclipped_scheme(chosen).observer == MovingAverage()
    assert unclipped_scheme(ActivationScheme()) == ActivationScheme()
