"""A Hugging Face hub on this machine, as far as uploading and downloading a model needs one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TOKEN = "hf_of_the_test"
Files = dict[str, bytes]


class Hub:
    """What the server keeps: of each repository its commits, by name and hash, and whether it is private."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.private: set[str] = set()
        self.cards: list[str] = []  # texts whose metadata the client asked to be looked at
        self.requests: list[str] = []

    def files(self, repository: str, revision: str) -> Files | None:
        """The files of a revision: a hash, or `main` for the latest."""
        commits = self.commits[repository]
        return commits.get(list(commits)[-1] if revision == "main" and commits else revision)

    def commit(self, repository: str, lines: list[dict]) -> str:
        """Add the files of a commit to those of the last one; returns its hash."""
        files = dict(self.files(repository, "main") or {})
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[repository][digest] = files
        return digest


class Handler(BaseHTTPRequestHandler):
    """The answers; `hub` is set by `serve`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.enter()
        if path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, None, "Invalid username or password.")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.commits.setdefault(name, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer({"url": f"{self.address}/{name}", "name": name, "id": "1"})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if match is None:
            return self.refuse(404, None, "Not Found")
        if match[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        digest = self.hub.commit(match[1], [json.loads(line) for line in body.splitlines()])
        return self.answer({"commitUrl": f"{self.address}/{match[1]}/commit/{digest}", "commitOid": digest})

    def do_GET(self) -> None:
        path = self.enter()
        pattern = r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?"
        match = re.fullmatch(pattern, path)
        if match is None:
            return self.refuse(404, None, "Not Found")
        repository, action, revision, name = match.groups()
        is_hidden = repository in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repository not in self.hub.commits or is_hidden:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        files = self.hub.files(repository, revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        digest = next(key for key, each in self.hub.commits[repository].items() if each is files)
        if action == "revision":
            return self.answer({"id": repository, "sha": digest, "siblings": [{"rfilename": each} for each in files]})
        if action == "tree":
            rows = [
                {"type": "file", "path": each, "size": len(data), "oid": blob(data)} for each, data in files.items()
            ]
            return self.answer(rows)
        if name not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.answer(files[name], {"X-Repo-Commit": digest, "ETag": f'"{blob(files[name])}"'})

    do_HEAD = do_GET

    def enter(self) -> str:
        """The path of the request, which is noted."""
        path = self.path.split("?")[0].replace("%2F", "/")
        self.hub.requests.append(f"{self.command} {path}")
        return path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, content: object, headers: dict[str, str] | None = None, code: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, reason: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": reason} if reason else {})
        self.answer({"error": message}, headers, code)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def blob(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub uses meanwhile, with an empty cache in `cache`, and nobody logged in."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        constants = "huggingface_hub.constants"
        patch.setattr(f"{constants}.ENDPOINT", address)
        patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
        patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        patch.setattr(f"{constants}.HF_TOKEN_PATH", str(cache / "no_token"))
        patch.delenv("HF_TOKEN", raising=False)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
