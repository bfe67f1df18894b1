"""Environments that are pure JAX functions: they can be compiled into one program with what learns from them."""
