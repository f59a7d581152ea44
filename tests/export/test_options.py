"""How many samples an export is verified on."""

import pytest

from tfcompress.export.options import VerifyOptions


@pytest.mark.parametrize(("values", "samples"), [(1, 256), (2**20, 256), (2**21, 128), (2**24, 64)])
def test_large_models_are_verified_on_fewer_samples(values, samples):
    assert VerifyOptions().most_samples(values) == samples
    assert VerifyOptions(samples=7).most_samples(values) == 7
