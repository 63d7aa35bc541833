# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The part of the Hub that takes models, on this machine: repositories, uploads of large files, and commits.

with PushHub() as hub:
    ...  # HF_ENDPOINT=hub.address HF_TOKEN=anything HF_HUB_DISABLE_XET=1
hub.repositories["me/my-model"]["config.json"]
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


TOKEN = "hf_of_nobody"
_LARGE = (".safetensors", ".png")


class PushHub(ThreadingHTTPServer):
    """`repositories` maps an id to its files, path to contents; `commits` lists (id, title, paths)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.large: dict[str, bytes] = {}  # by checksum, until a commit names them

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PushHub

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        for pattern, answer in _POST.items():
            match = re.fullmatch(pattern, self.path.partition("?")[0])
            if match:
                content = answer(self.server, *match.groups(), body)
                return self.answer(content, 400 if content.get("errors") else 200)
        return self.answer({"error": f"There is no {self.path}."}, 404)

    def do_PUT(self):
        """A large file; the address, which only the owner was told, stands for the token."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        checksum = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != checksum:
            return self.answer({"error": "These are other bytes."}, 400)
        self.server.large[checksum] = body
        return self.answer({})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _create(hub: PushHub, body: bytes) -> dict:
    wanted = json.loads(body)
    repo_id = f"{wanted['organization']}/{wanted['name']}"
    hub.repositories.setdefault(repo_id, {})
    return {"url": f"{hub.address}/{repo_id}", "name": repo_id, "id": "1"}


def _check_card(hub: PushHub, body: bytes) -> dict:
    known = "library_name: transformers" in json.loads(body)["content"]
    return {"errors": [] if known else [{"message": "The card names no library."}]}


def _upload_modes(hub: PushHub, repo_id: str, body: bytes) -> dict:
    paths = [file["path"] for file in json.loads(body)["files"]]
    modes = {path: "lfs" if path.endswith(_LARGE) else "regular" for path in paths}
    return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}


def _large_files(hub: PushHub, repo_id: str, body: bytes) -> dict:
    return {
        "transfer": "basic",
        "objects": [
            {**file, "actions": {"upload": {"href": f"{hub.address}/large/{file['oid']}"}}}
            for file in json.loads(body)["objects"]
        ],
    }


def _commit(hub: PushHub, repo_id: str, body: bytes) -> dict:
    header, *changes = map(json.loads, body.splitlines())
    files = {
        change["value"]["path"]: hub.large[change["value"]["oid"]]
        if change["key"] == "lfsFile"
        else base64.b64decode(change["value"]["content"])
        for change in changes
    }
    hub.repositories[repo_id].update(files)
    hub.commits.append((repo_id, header["value"]["summary"], sorted(files)))
    commit = f"{len(hub.commits):040x}"
    return {"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{repo_id}/commit/{commit}"}


_POST = {
    "/api/repos/create": _create,
    "/api/validate-yaml": _check_card,
    "/api/models/([^/]+/[^/]+)/preupload/main": _upload_modes,
    r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": _large_files,
    "/api/models/([^/]+/[^/]+)/commit/main": _commit,
}
