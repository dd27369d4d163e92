"""Guides that follow a plate of the model: globals, and the latents of each row given these."""
