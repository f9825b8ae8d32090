"""`surgseg bench`: scenarios of live streams, posted pictures and frames in memory, measured on the real service."""
