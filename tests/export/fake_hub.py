"""A hub on this machine: it takes repositories and commits as the real one does, and keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.requests.append(f"GET {self.path}")
        if self.server.refuses:
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": "someone/tiny", "siblings": []})

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            return self.answer({"error": "You have no right to do this."}, 403)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.address}/someone/tiny"})
        if "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                values = json.loads(line)
                if values["key"] == "file":
                    self.server.files[values["value"]["path"]] = base64.b64decode(values["value"]["content"])
            commit = f"{self.server.address}/someone/tiny/commit/abc"
            return self.answer({"commitUrl": commit, "commitOid": "abc", "success": True})
        return self.answer({"yaml": "", "errors": [], "warnings": []})  # what checks a model card

    def answer(self, values: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass
