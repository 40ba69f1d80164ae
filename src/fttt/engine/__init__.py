"""Batched generation and training with per-question weights."""
