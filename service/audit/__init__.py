"""The audit record: which model gave which mask for which frame, and when; written beside the streams, read later."""
