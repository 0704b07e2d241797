"""The dtype that the embedded model is served in unless told otherwise."""

from typing import Literal

Dtype = Literal["bfloat16", "float32"]

# Half the bytes of float32, which is what a decoding step of few rows waits for: the CPU platform
# widens bfloat16 in registers, so that also a CPU that cannot multiply it is faster for it.
DEFAULT_DTYPE: Dtype = "bfloat16"
