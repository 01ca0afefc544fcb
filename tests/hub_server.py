"""A small Hub on this machine: the endpoints that pushing and loading use, over plain HTTP, with faults on demand.

Commits are kept in memory. `.safetensors` files go the way of large files (LFS batch, upload, redirect to another
host), the others are sent within the commit, as the real Hub does.
"""

import base64
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token"


class LocalHub:
    """`with LocalHub() as hub:` serves at `hub.endpoint`.

    Attributes:
        repos: name -> {"private": bool, "branches": {branch: commit}, "commits": {commit: {path: bytes}},
            "history": {branch: [newest commit, ...]}, "discussions": [...]}.
        faults: (method, part of the path) -> status to answer, or "drop" to break the connection.
        requests: every (method, path) served.
    """

    def __init__(self):
        self.repos, self.blobs, self.faults, self.requests = {}, {}, {}, []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        # Large files come from another host, as from the real Hub's storage.
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo["commits"][repo["branches"].get(revision, revision)]

    def create(self, name: str, private: bool = False) -> None:
        self.repos[name] = {"private": private, "branches": {}, "commits": {}, "history": {}, "discussions": []}
        self.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        repo = self.repos[name]
        listing = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        commit = hashlib.sha1(json.dumps([len(repo["commits"]), listing]).encode()).hexdigest()
        repo["commits"][commit], repo["branches"][branch] = files, commit
        history = repo["history"]
        history[branch] = [commit, *history.get(branch, history.get("main", []))]
        return commit

    def propose(self, name: str, number: int, title: str, author: str, files: dict[str, bytes]) -> None:
        """Open a pull request on top of main."""
        self.commit(name, f"refs/pr/{number}", files)
        self.repos[name]["discussions"].append(
            {
                "title": title,
                "num": number,
                "author": {"name": author},
                "createdAt": "2024-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": name, "type": "model"},
                "isPullRequest": True,
            }
        )


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            for (method, part), fault in self.hub.faults.items():
                if method == self.command and part in path:
                    if fault == "drop":
                        self.close_connection = True
                        return self.connection.shutdown(socket.SHUT_RDWR)
                    return self.answer(fault, {"error": "as the test wants it"})
            self.route(path.strip("/"))

    def route(self, path):
        if path == "api/repos/create":
            return self.create_repo()
        if path == "api/whoami-v2":
            known = self.has_token()
            return self.answer(200, {"name": "me", "type": "user", "orgs": []}) if known else self.answer(401, {})
        if path == "api/validate-yaml":
            content = json.loads(self.body)["content"]
            valid = content.startswith("---\n") and "\n---\n" in content
            return self.answer(200, {}) if valid else self.answer(400, {"errors": [{"message": "no metadata"}]})
        if path.startswith("lfs/"):
            oid = path.split("/")[1]
            if self.command == "PUT":
                if hashlib.sha256(self.body).hexdigest() != oid:
                    return self.answer(422, {"error": "checksum"})
                self.hub.blobs[oid] = self.body
                return self.answer(200, {})
            return self.answer(200, self.hub.blobs[oid])
        parts = path.split("/")
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.lfs_batch("/".join(parts[:2]).removesuffix(".git"))
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), parts[4:])
        if "resolve" in parts:
            depth = 6 if parts[3] == "refs" else 4  # refs/pr/1 is one revision
            return self.resolve("/".join(parts[:2]), "/".join(parts[3:depth]), "/".join(parts[depth:]))
        return self.answer(404, {"error": f"unknown path {path}"})

    def has_token(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, name, revision="main", write=False):
        """(repository, commit), or None after an error was answered."""
        repo = self.hub.repos.get(name)
        if write and not self.has_token():
            return self.answer(401, {"error": "Invalid username or password."})
        if repo is None or (repo["private"] and not self.has_token()):
            return self.answer(404 if self.has_token() else 401, {}, {"X-Error-Code": "RepoNotFound"})
        commit = repo["branches"].get(revision, revision)
        if commit not in repo["commits"]:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return repo, commit

    def create_repo(self):
        if not self.has_token():
            return self.answer(401, {"error": "Invalid username or password."})
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.create(name, private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
        return self.answer(200, {"url": url, "name": name})

    def api(self, name, rest):
        action = rest[0] if rest else "revision"
        revision = "/".join(rest[1:4] if rest[1:2] == ["refs"] else rest[1:2]) or "main"
        writes = action in ("preupload", "commit", "branch")
        found = self.find(name, "main" if action == "branch" else revision, writes)
        if found is None:
            return None
        repo, commit = found
        if action == "branch":
            if revision in repo["branches"]:
                return self.answer(409, {"error": "Reference already exists"})
            repo["branches"][revision] = commit
            return self.answer(200, {})
        files = repo["commits"][commit]
        if action == "discussions":
            found = repo["discussions"]
            return self.answer(200, {"count": len(found), "start": 0, "discussions": found})
        if action == "commits":
            facts = {"title": "", "message": "", "date": "2024-01-01T00:00:00.000Z", "authors": []}
            return self.answer(200, [{"id": one, **facts} for one in repo["history"].get(revision, [commit])])
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            info = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
            return self.answer(200, {**info, "private": repo["private"], "downloads": 0, "likes": 0})
        if action == "tree":
            return self.answer(200, [{"type": "file", "path": path, **entry(data)} for path, data in files.items()])
        if action == "preupload":
            asked = json.loads(self.body)["files"]
            modes = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in asked}
            return self.answer(
                200,
                {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]},
            )
        if action == "commit":
            return self.commit(name, revision, dict(files))
        return self.answer(404, {"error": f"unknown action {action}"})

    def commit(self, name, revision, files):
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(name, revision, files)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def lfs_batch(self, name):
        if self.find(name, write=True) is None:
            return None
        objects = []
        for one in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.storage}/lfs/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.blobs else {"actions": actions})})
        return self.answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def resolve(self, name, revision, path):
        found = self.find(name, revision)
        if found is None:
            return None
        repo, commit = found
        headers = {"X-Repo-Commit": commit}
        data = repo["commits"][commit].get(path)
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        if path.endswith(".safetensors"):
            oid = hashlib.sha256(data).hexdigest()
            self.hub.blobs[oid] = data
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data)), "ETag": f'"{oid[:40]}"'}
            return self.answer(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/lfs/{oid}"})
        return self.answer(200, data, {**headers, "ETag": f'"{entry(data)["oid"]}"'}, kind="text/plain")

    def answer(self, status, content, headers=None, kind="application/json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if isinstance(content, dict) and content.get("error"):
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def entry(data: bytes) -> dict:
    """Git's object id and the size of a file."""
    return {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), "size": len(data)}
