"""Losses: pure functions of logits and targets, each held against a literal loop of its equation by a test."""
