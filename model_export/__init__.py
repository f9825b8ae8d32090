"""Turns a checkpoint into a bundle the service can trust, and proves what a bundle claims to be."""
