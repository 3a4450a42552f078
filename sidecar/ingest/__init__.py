"""Bytes to facts: no SQL, no HTTP objects."""
