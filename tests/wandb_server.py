"""As much of W&B's server on the loopback as its client needs to run online, and what can go wrong with it.

    with WandbServer() as server:
        server.fail(401, after="UpsertBucket")
        subprocess.run(command, env=server.env())

Understood: who is asking, a run's creation, its file stream and files, artifacts (taken for known ones). ``asked`` has
the name of every operation, ``history`` the steps that arrived.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

GONE, SILENT, SLOW = "gone", "silent", "slow"  # what can go wrong, beside an HTTP status
KEY = "local-" + "0123456789" * 4


class WandbServer:
    """The server. A context manager; listens on a free port of 127.0.0.1.

    Attributes:
        asked: names of GraphQL operations, and ``METHOD /path`` of everything else.
        history: lines of the run's history that were taken.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.fault: int | str | None = None
        self.after: str | None = None
        self.taken: socket.socket | None = None

        class Handler(_Handler):
            wandb = self

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> WandbServer:
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go()
        assert self.taken
        self.taken.close()

    def go(self) -> None:
        """Further connections are refused; the port stays taken, so that no other test's server gets them."""
        if self.taken:
            return
        self.server.shutdown()
        self.server.server_close()
        self.taken = socket.socket()
        self.taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.taken.bind(self.server.server_address)

    def fail(self, fault: int | str, after: str | None = None) -> None:
        """Fail every request: with an HTTP status, GONE, SILENT or SLOW.

        Args:
            after: an operation that is answered well, as all before it are.
        """
        self.fault, self.after = fault, after
        if fault == GONE and after is None:
            self.go()

    def env(self) -> dict[str, str]:
        """An environment in which W&B's client uses this server."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and "PROXY" not in k.upper()}
        return env | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, address: object) -> None:
        """Nothing: clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body, server = self._body(), self.wandb
        asked = self._asked(body)
        if "/otel/" in asked:  # the client's own telemetry
            return self._send(200, {})
        server.asked.append(asked)
        if server.fault is None or server.after is not None:
            self._send(200, self._well(asked, body))
        elif isinstance(server.fault, int):
            self._send(server.fault, {"errors": [{"message": "as the test wants it"}]})
        elif server.fault == SLOW:
            time.sleep(10)
            self._send(200, self._well(asked, body))
        else:
            time.sleep(600 if server.fault == SILENT else 0)
            self.close_connection = True
        if server.after == asked:
            server.after = None
            if server.fault == GONE:
                self.close_connection = True
                Thread(target=server.go).start()

    def _body(self) -> dict[str, Any]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raw = b""
            while size := int(self.rfile.readline(), 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            found = json.loads(raw)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _asked(self, body: dict[str, Any]) -> str:
        named = re.match(r"\s*(?:query|mutation)\s+(\w+)", body.get("query", ""))
        return named[1] if named else f"{self.command} {self.path}"

    def _well(self, asked: str, body: dict[str, Any]) -> dict[str, Any]:
        given = body.get("variables") or {}
        if asked.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.wandb.history += [json.loads(line) for line in lines]
            return {}
        project = {"id": "P", "name": "rmu_exp", "entity": {"id": "E", "name": "me"}}
        data: dict[str, Any] = {}
        if asked == "Viewer":
            data = {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        elif asked == "UpsertBucket":
            name = given.get("name") or "run"
            bucket = {"id": "R", "name": name, "displayName": name, "config": "{}", "project": project}
            data = {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        elif asked == "CreateRunFiles":
            urls = [{"name": f, "uploadUrl": f"{self.wandb.url}/storage/{f}"} for f in given["files"]]
            data = {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": urls}}
        elif asked == "ArtifactType":
            data = {"project": {"artifact": {"artifactType": {"name": "delta"}}}}
        elif asked == "CreateArtifact":
            sequence = {"id": "S", "latestArtifact": {"id": "A", "versionIndex": 0}}
            data = {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"data": data}

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has gone
