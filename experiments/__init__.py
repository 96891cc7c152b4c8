"""Experiments: one file per run. Copy one to make the next."""
