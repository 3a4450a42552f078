"""Finished sessions leave the house: claim, send, settle. One file a destination in `sinks`."""
