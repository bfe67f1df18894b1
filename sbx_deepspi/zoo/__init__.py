"""
RL Zoo support. Importing this package does not import RL Zoo; importing :mod:`sbx_deepspi.zoo.registration` does, and
adds our algorithms to it.
"""

from sbx_deepspi.zoo.wrappers import flatten_dict

__all__ = ["flatten_dict"]
