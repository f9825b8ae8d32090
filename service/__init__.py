"""The production half: video in, instrument masks out. Imports nothing else of ours, and never torch."""
