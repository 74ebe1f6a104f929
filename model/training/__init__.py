"""Offline training: recipes as data, one loop for every preset, checkpoints, curves."""
