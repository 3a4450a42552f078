"""Vitals Sidecar: beacons in, sessions derived, finished sessions shipped. Read README.md, then schema.sql."""

__version__ = "0.1.0"
