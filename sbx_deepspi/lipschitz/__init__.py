"""Lipschitz layers: the theory of their norms, the layers, and the cache that makes norms cheap."""
