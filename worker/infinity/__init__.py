"""The Infinity text-to-image model: bitwise visual autoregressive transformer, VAE and text encoder."""
