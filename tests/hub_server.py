"""A small Hub on loopback: the API and the files that huggingface_hub asks for, with faults on demand.

    with FakeHub() as hub:
        commit = hub.add("model", "owner/name", {"config.json": b"{}"})
        hub.fail("config.json", "cut", times=1)
        ...  # HF_ENDPOINT=hub.endpoint

Large files (`.bin`, `.safetensors`, `.parquet`) are LFS files, answered as the real Hub does: a redirect with their
sha256 and size, to another path.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS = (".bin", ".safetensors", ".parquet")
PIECE = 262_144


@dataclass
class Repository:
    """One repository with one commit."""

    kind: str
    name: str
    files: dict
    commit: str
    card: dict = field(default_factory=dict)
    branches: tuple = ("main",)
    gated: bool = False


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeHub:
    """The server; `requests` holds (method, path, Range or None, whether a token came)."""

    def __init__(self):
        self.repositories, self.faults, self.requests, self.sent = {}, [], [], Counter()
        self.retry_after = "1"
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.gone()

    def gone(self):
        """Close the port: connections are refused from now on."""
        self.closing.set()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def environment(self, home):
        """The environment of a process that knows this Hub alone, with a cache of its own at `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}

    def add(self, kind, name, files, *, commit=None, **options):
        """Add a repository; its commit is made of its content unless given."""
        commit = commit or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[kind, name] = Repository(kind, name, files, commit, **options)
        return commit

    def fail(self, where, what, times=1):
        """The next `times` GETs whose path holds `where` go wrong: cut, wrong, slow, stall, or an HTTP status."""
        self.faults.append([where, what, times])

    def fault(self, path):
        for one in self.faults:
            if one[0] in path and one[2] > 0:
                one[2] -= 1
                return one[1]
        return None

    def gets(self, where=""):
        """The paths of the GETs so far that hold `where`."""
        return [path for method, path, _, _ in self.requests if method == "GET" and where in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def reply(self, status, headers=None, body=b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not {"Content-Length"} & set(headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status, code, message=""):
        self.reply(status, {"X-Error-Code": code, "X-Error-Message": message or code})

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.hub.requests.append((self.command, path, self.headers.get("Range"), token is not None))
        fault = self.hub.fault(path) if self.command == "GET" else None
        if fault == "stall":
            self.hub.closing.wait()
            return None
        if isinstance(fault, int):
            return self.reply(fault, {"Retry-After": self.hub.retry_after} if fault == 429 else {})
        api = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        resolve = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        cdn = re.fullmatch(r"/cdn/([0-9a-f]{64})", path)
        if cdn:
            for repository in self.hub.repositories.values():
                for data in repository.files.values():
                    if hashlib.sha256(data).hexdigest() == cdn[1]:
                        return self.send(data, {"ETag": f'"{cdn[1]}"'}, fault)
        kind, name, revision = None, None, None
        if api:
            kind, name, revision = api[1], api[2], api[3] or "main"
        elif resolve:
            kind, name, revision = "dataset" if resolve[1] else "model", resolve[2], resolve[3]
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in (repository.commit, *repository.branches):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.gated and resolve and token != "Bearer hf_right":
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        return self.describe(repository) if api else self.resolve(repository, resolve[4], fault)

    def describe(self, repository):
        siblings = []
        for path, data in repository.files.items():
            one = {"rfilename": path, "size": len(data), "blobId": blob_id(data)}
            if path.endswith(LFS):
                sha256 = hashlib.sha256(data).hexdigest()
                one |= {"blobId": "0" * 40, "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 134}}
            siblings.append(one)
        body = {
            "_id": "1", "id": repository.name, "sha": repository.commit, "private": False, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
            "cardData": repository.card or None,
        }  # fmt: skip
        return self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, repository, path, fault):
        if path not in repository.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit}
        if path.endswith(LFS):
            sha256 = hashlib.sha256(data).hexdigest()
            where = f"http://localhost:{self.hub.port}/cdn/{sha256}"  # another host, as the Hub's storage is
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "Location": where}
            if fault:  # it strikes where the bytes are
                self.hub.faults.insert(0, [f"/cdn/{sha256}", fault, 1])
            return self.reply(302, headers)
        return self.send(data, {**headers, "ETag": f'"{blob_id(data)}"'}, fault)

    def send(self, data, headers, fault):
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        asked, status = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")), 200
        if asked:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        end = len(data) // 2 if fault == "cut" else len(data)
        for position in range(0, end, PIECE):
            piece = data[position : min(position + PIECE, end)]
            self.wfile.write(piece)
            self.hub.sent[self.path] += len(piece)
            if fault == "slow":
                time.sleep(0.05)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
