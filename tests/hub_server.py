# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Two parts of the Hub on this machine: one serves files, the other takes models.

with Hub({("owner/name", "config.json"): b"{}"}) as hub:
    ...  # HF_ENDPOINT=hub.address HF_HUB_CACHE=another HF_HUB_OFFLINE=0
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
from urllib.parse import unquote


TOKEN = "hf_of_nobody"
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every file that is served
_LARGE = (".safetensors", ".png")


class _LocalServer(ThreadingHTTPServer):
    """Serves from a thread of its own."""

    daemon_threads = True

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


class Hub(_LocalServer):
    """Serves files: metadata by HEAD, contents by GET with ranges.

    `files` maps (repository, file) to contents. `drop_after` cuts the first download's connection after so many bytes.
    """

    def __init__(self, files: dict[tuple[str, str], bytes]):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files = files
        self.drop_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.bytes_sent = 0


class HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None:  # the library asks for other things, too
            return self.refuse(404, "EntryNotFound")
        repo, _revision, file = (unquote(part) for part in match.groups())
        if repo not in {repo for repo, _ in self.server.files}:
            return self.refuse(401, "RepoNotFound")
        content = self.server.files.get((repo, file))
        if content is None:
            return self.refuse(404, "EntryNotFound")
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers.get("Range") else 0
        self.send_response(206 if start else 200)
        etag = hashlib.sha256(content).hexdigest()
        for name, value in {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{etag}"',
            "X-Linked-ETag": f'"{etag}"',
            "X-Linked-Size": len(content),
            "Accept-Ranges": "bytes",
            "Content-Length": len(content) - start,
        }.items():
            self.send_header(name, str(value))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return None
        body = content[start:]
        if self.server.drop_after is not None:
            body, self.server.drop_after = body[: self.server.drop_after], None
            self.close_connection = True
        self.wfile.write(body)
        self.server.bytes_sent += len(body)
        return None

    def refuse(self, status: int, code: str):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


class PushHub(_LocalServer):
    """Takes models and Spaces.

    `repositories` maps an id to its files, path to contents; `commits` lists (id, title, paths).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _PushRequest)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.large: dict[str, bytes] = {}  # by checksum, until a commit names them


class _PushRequest(BaseHTTPRequestHandler):
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
    card = json.loads(body)
    wanted = {"model": "library_name: transformers", "space": "sdk: gradio"}[card["repoType"]]
    return {"errors": [] if wanted in card["content"] else [{"message": f"The card lacks '{wanted}'."}]}


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
    "/api/(?:models|spaces)/([^/]+/[^/]+)/preupload/main": _upload_modes,
    r"/(?:spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": _large_files,
    "/api/(?:models|spaces)/([^/]+/[^/]+)/commit/main": _commit,
}
