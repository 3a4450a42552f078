"""ClickHouse's HTTP interface, as far as a sink uses it, before the engine of chdb-core; a process of its own.

Usage: chdb_server.py PORT FOLDER PASSWORD SETTINGS. The engine is the real one; user and password are checked here.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


def main(port: int, folder: str, password: str, settings: dict[str, str]) -> None:
    # Imported by name, for not everybody has it. It takes a `config.xml` of the present folder for its own.
    session: Any = importlib.import_module("chdb.session").Session(folder)
    one_at_a_time = threading.Lock()
    authorization = f"Basic {base64.b64encode(f'default:{password}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != authorization:
                return self.answer(403, b"Code: 516. DB::Exception: default: Authentication failed", "516")
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            given = dict(parse_qsl(urlsplit(self.path).query))
            statement = given.pop("query", "")
            try:
                with one_at_a_time:
                    for name, value in given.items():
                        session.query(f"SET {name} = '{value}'")
                    found = session.query(f"{statement}\n{body.decode()}", "TabSeparated")
            except Exception as error:
                code = re.match(r"Code: (\d+)", str(error))
                return self.answer(500, str(error).encode(), code[1] if code else "1002")
            return self.answer(200, found.bytes() or b"")

        def answer(self, status: int, body: bytes, code: str = "") -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            if code:
                self.send_header("X-ClickHouse-Exception-Code", code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The tests read no log of it."""

    for name, value in settings.items():
        session.query(f"SET {name} = '{value}'")
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
