"""The real-time core: decide what runs next, run it, publish the masks. Knows no web framework."""
