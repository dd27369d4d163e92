"""Posteriors of globals and rows: weights of each row, moments and pictures by plate."""
