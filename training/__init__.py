"""Learns a segmentation network from labeled and unlabeled frames; sees only the service's contract and errors."""
