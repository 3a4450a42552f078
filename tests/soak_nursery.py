"""The process that forks the sidecars of the soak: it has their package imported, so that a start takes 0.1 s, not 1.

It runs on the package that is on its path, says which that is, then takes one JSON object a line and answers with one.
Nothing in a child differs from `python -m sidecar`: same command line, a clean environment, its own output.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any


def become(said: dict[str, Any]) -> None:
    """What a child does; it never returns."""
    from sidecar.__main__ import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, said["out"]), (2, said["log"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(said["folder"])
    os.environ.clear()
    os.environ.update(said["environment"])
    sys.argv = ["sidecar", *said["start"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork_on_demand() -> None:
    """Until its input ends; then its children end, too."""
    import uvicorn.protocols.http.httptools_impl  # noqa: F401 - what each child would import
    import uvloop  # noqa: F401 - as above

    import sidecar
    import sidecar.__main__
    import sidecar.app
    import sidecar.ship.sinks.http
    from sidecar.ingest.client import read_user_agent

    read_user_agent("Mozilla/5.0 (X11; Linux x86_64)")  # the patterns it takes are made but once
    gc.freeze()  # so that no child looks through all that, and copies its pages by doing so
    print(json.dumps({"package": sidecar.__file__}), flush=True)
    children: set[int] = set()
    for line in sys.stdin:
        said = json.loads(line)
        if "poll" in said:
            pid, status = os.waitpid(said["poll"], os.WNOHANG)
            children.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            child = os.fork()
            if child == 0:
                become(said)
            children.add(child)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    fork_on_demand()
