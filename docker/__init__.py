"""The images, and how to try their steps without a container engine: `python -m docker.trial`."""
