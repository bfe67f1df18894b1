"""
Operations in the form that is fast, each behind one call. Where that depends on the platform, both forms compute the
same; of random numbers, the same distribution. What CPUs need is in :mod:`sbx_deepspi.ops.cpu`; elsewhere XLA's own
operations are right.
"""

from sbx_deepspi.ops.compilation import QUICKLY, keep_compiled_programs
from sbx_deepspi.ops.convolution import convolution
from sbx_deepspi.ops.noise import clipped_normal
from sbx_deepspi.ops.parts import in_parts, microbatch_size
from sbx_deepspi.ops.patches import patches
from sbx_deepspi.ops.permutation import permutation

__all__ = [
    "QUICKLY", "clipped_normal", "convolution", "in_parts", "keep_compiled_programs", "microbatch_size", "patches",
    "permutation",
]  # fmt: skip
