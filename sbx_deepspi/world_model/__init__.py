"""The world model on the latent space: transition densities, transition and reward model, imagination."""
