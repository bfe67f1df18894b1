"""Environments: the EnvPool adapter."""
