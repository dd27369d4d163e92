"""Gaussians to start from: L-BFGS paths, batch-and-match, the best full rank."""
