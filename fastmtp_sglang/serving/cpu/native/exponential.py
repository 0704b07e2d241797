"""exp in float32, as arithmetic that compilers turn into vectors."""

import numpy as np

from fastmtp_sglang.serving.cpu.native.compiled import helper
from fastmtp_sglang.serving.cpu.native.vectors import power_of_two

_f = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.44269504088896341), _f(0.693359375), _f(-2.12194440e-4)
# Cephes' expf: a polynomial for exp(r), |r| <= ln(2) / 2, within two units of the last place.
_E0, _E1, _E2 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_E3, _E4, _E5 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)
_LOW, _HIGH, _ONE, _HALF = _f(-87.0), _f(88.0), _f(1.0), _f(0.5)


@helper
def exp(x):
    """e ** x within two units of the last place; x is held within what float32 can say."""
    x = min(max(x, _LOW), _HIGH)
    whole = np.floor(x * _LOG2_E + _HALF)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    return (p * r * r + r + _ONE) * power_of_two(whole)
