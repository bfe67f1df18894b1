"""
RL Zoo support. Importing this package does not import RL Zoo; importing :mod:`sbx_deepspi.zoo.registration` does, and
adds our algorithms to it.
"""
