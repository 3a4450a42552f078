"""The demo: a sidecar, a small site with the tracker on it, a second sidecar as upstream, and traffic."""

from sidecar.demo.stage import run

__all__ = ["run"]
