"""A small Hub on loopback: the API and the files that huggingface_hub requests, with faults on demand.

    with FakeHub() as hub:
        commit = hub.add("model", "owner/name", {"config.json": b"{}"})
        hub.fail("config.json", "cut", times=1)
        ...  # HF_ENDPOINT=hub.endpoint

Large files (`.bin`, `.safetensors`, `.parquet`) are LFS files. As on the real Hub, a request for one is answered with
a redirect to another path, with the sha256 and size of the file. `hub.store_in_xet(data, folder)` puts one into Xet
storage as well: a folder written and read by hf_xet itself, in place of its servers.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS = (".bin", ".safetensors", ".parquet", ".model")
CHUNK_BYTES = 262_144
UPLOAD = """
import sys, hf_xet
with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    upload = commit.start_upload_bytes(sys.stdin.buffer.read(), sha256=hf_xet.SKIP_SHA256)
print(upload.result().xet_info.hash)
"""


@dataclass
class Repository:
    """One repository with one commit."""

    repo_type: str
    name: str
    files: dict
    commit: str
    card: dict = field(default_factory=dict)
    branches: tuple = ("main",)
    gated: bool = False


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeHub:
    """The server; `requests` contains (method, path, Range or None, whether a token was sent)."""

    def __init__(self):
        self.repositories, self.faults, self.requests, self.sent = {}, [], [], Counter()
        self.retry_after = "1"
        self.xet_hashes, self.xet_storage = {}, None
        self.stored, self.private = {}, {}  # uploaded large files by sha256; whether a new repository is private
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
        """The environment of a process that uses only this Hub, with a separate cache at `home`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {**inherited, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}

    def add(self, repo_type, name, files, *, commit=None, **options):
        """Add a repository; its commit is a hash of its content unless given."""
        commit = commit or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[repo_type, name] = Repository(repo_type, name, files, commit, **options)
        return commit

    def store_in_xet(self, data, folder):
        """Put a file into Xet storage, so that the answer to a request for it says where it is there."""
        self.xet_storage = f"local://{folder}"
        environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", UPLOAD, self.xet_storage],
            input=data,
            env=environment,
            capture_output=True,
            check=True,
        )
        self.xet_hashes[hashlib.sha256(data).hexdigest()] = done.stdout.decode().strip()

    def fail(self, where, what, times=1):
        """Make the next `times` GETs whose path contains `where` fail: cut, wrong, slow, stall, or an HTTP status."""
        self.faults.append([where, what, times])

    def fault(self, path):
        for entry in self.faults:
            where, what, times = entry
            if where in path and times > 0:
                entry[2] -= 1
                return what
        return None

    def gets(self, where=""):
        """The paths of the GETs so far that contain `where`."""
        return [path for method, path, _, _ in self.requests if method == "GET" and where in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        token, body = self.headers.get("Authorization"), self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(("POST", path, None, token is not None))
        if token != "Bearer hf_write":
            return self.refuse(403 if token else 401, "Forbidden", "this token can't write")
        if path == "/api/repos/create":
            sent = json.loads(body)
            name = f"{sent.get('organization')}/{sent['name']}"
            if ("model", name) in self.hub.repositories:
                return self.json(409, {"error": "it exists", "url": f"{self.hub.endpoint}/{name}"})
            self.hub.add("model", name, {})
            self.hub.private[name] = bool(sent.get("private") or sent.get("visibility") == "private")
            return self.json(200, {"url": f"{self.hub.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            is_card = json.loads(body)["content"].startswith("---\n")
            return self.json(200 if is_card else 400, {"errors": [], "warnings": []})
        if preupload := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            old = self.hub.repositories["model", preupload[1]].files
            return self.json(200, {"files": [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith((*LFS, ".gguf")) else "regular",
                 "shouldIgnore": False, "oid": None if file["path"] not in old else blob_id(old[file["path"]])}
                for file in json.loads(body)["files"]
            ]})  # fmt: skip
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.json(200, {"transfer": "basic", "objects": [
                {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}}
                if entry["oid"] not in self.hub.stored else entry
                for entry in json.loads(body)["objects"]
            ]})  # fmt: skip
        if commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repository = self.hub.repositories["model", commit[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = self.hub.stored[value["oid"]]
            repository.commit = hashlib.sha1(body).hexdigest()
            url = f"{self.hub.endpoint}/{commit[1]}/commit/{repository.commit}"
            return self.json(200, {"commitUrl": url, "commitOid": repository.commit})
        return self.refuse(404, "NotFound")

    def do_PUT(self):
        """Receive a large file. A fault `cut` closes the connection before the end, `500` refuses the file."""
        oid = self.path.rpartition("/")[2]
        fault = self.hub.fault(self.path)
        if fault == "cut":
            self.rfile.read(1024)
            self.close_connection = True
            return self.connection.close()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.sent[self.path] += len(data)
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.stored[oid] = data
        return self.reply(200)

    def json(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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
        if path == "/api/xet-token":
            answer = {"accessToken": "token", "exp": int(time.time()) + 3600, "casUrl": self.hub.xet_storage}
            return self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())
        if cdn:
            for repository in self.hub.repositories.values():
                for data in repository.files.values():
                    if hashlib.sha256(data).hexdigest() == cdn[1]:
                        return self.send(data, {"ETag": f'"{cdn[1]}"'}, fault)
        repo_type, name, revision = None, None, None
        if api:
            repo_type, name, revision = api[1], api[2], api[3] or "main"
        elif resolve:
            repo_type, name, revision = "dataset" if resolve[1] else "model", resolve[2], resolve[3]
        repository = self.hub.repositories.get((repo_type, name))
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
            sibling = {"rfilename": path, "size": len(data), "blobId": blob_id(data)}
            if path.endswith(LFS):
                sha256 = hashlib.sha256(data).hexdigest()
                sibling |= {"blobId": "0" * 40, "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 134}}
            siblings.append(sibling)
        body = {
            "_id": "1", "id": repository.name, "sha": repository.commit, "gated": False, "disabled": False,
            "private": self.hub.private.get(repository.name, False), "downloads": 0, "likes": 0, "tags": [],
            "siblings": siblings, "cardData": repository.card or None,
        }  # fmt: skip
        return self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, repository, path, fault):
        if path not in repository.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit}
        if path.endswith(LFS):
            sha256 = hashlib.sha256(data).hexdigest()
            where = f"http://localhost:{self.hub.port}/cdn/{sha256}"  # another host, like the storage of the real Hub
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "Location": where}
            if sha256 in self.hub.xet_hashes:
                headers["X-Xet-Hash"] = self.hub.xet_hashes[sha256]
                headers["X-Xet-Refresh-Route"] = f"{self.hub.endpoint}/api/xet-token"
            if fault:  # apply it to the request for the bytes
                self.hub.faults.insert(0, [f"/cdn/{sha256}", fault, 1])
            return self.reply(302, headers)
        return self.send(data, {**headers, "ETag": f'"{blob_id(data)}"'}, fault)

    def send(self, data, headers, fault):
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        byte_range, status = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")), 200
        if byte_range:
            start, status = int(byte_range[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        end = len(data) // 2 if fault == "cut" else len(data)
        for position in range(0, end, CHUNK_BYTES):
            chunk = data[position : min(position + CHUNK_BYTES, end)]
            self.wfile.write(chunk)
            self.hub.sent[self.path] += len(chunk)
            if fault == "slow":
                time.sleep(0.05)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
