"""Encoders and heads, Lipschitz layers, latent densities and the world model: flax modules, no SB3."""
