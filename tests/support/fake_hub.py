"""A Hugging Face hub on loopback: what huggingface_hub asks of the real one, to push a model and to fetch it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

TOKEN = "hf_a_token_that_may_write"
READER = "hf_a_token_that_may_read"


class FakeHub:
    """Models by name, each with its files; as a context it serves at `endpoint`.

    Attributes:
        models: {owner/name: {"files": {path: bytes}, "private": bool}}.
        asked: Method and path of each request.
        commits: {owner/name: messages}.
    """

    def __init__(self):
        self.models, self.asked, self.commits, self.large = {}, [], {}, {}

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, name):
        return self.models[name]["files"]

    def commit_of(self, name):
        """As git names one: a mark of all files."""
        text = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.files(name).items()))
        return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def served(monkeypatch, tmp_path):
    """A hub, and nothing of this machine: its cache and its token are elsewhere, and nobody's."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        # Large files go by LFS over HTTP; the other way is a protocol of its own.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield fake


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *words):
        pass

    def answer(self, status, body=b"", **headers):
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do(self):
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        body = self.body()
        if self.command in ("POST", "PUT") and path != "/api/validate-yaml" and not path.startswith("/large/"):
            if self.token() == READER:
                return self.refuse(403, "Forbidden", "you may not write here")
            if self.token() != TOKEN:
                return self.refuse(401, "Unauthorized", "invalid username or password")
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, method)(body, *found.groups())
        return self.refuse(404, "EntryNotFound", f"nothing at {path}")

    do_GET = do_POST = do_PUT = do_HEAD = do

    def seen(self, name):
        """Whether whoever asks may see a model, which is answered where not."""
        model = self.hub.models.get(name)
        if model is None or (model["private"] and self.token() not in (TOKEN, READER)):
            self.refuse(401 if not self.token() else 404, "RepoNotFound", "repository not found")
            return False
        return True

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization')}/{asked['name']}"
        if name in self.hub.models:
            return self.answer(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.models[name] = {"files": {}, "private": private}
        return self.answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def validate(self, body):
        text = json.loads(body)["content"]
        bad = not text.startswith("---\n")
        return self.answer(400 if bad else 200, {"errors": [{"message": "no metadata"}] if bad else [], "warnings": []})

    def preupload(self, body, name, _):
        files = json.loads(body)["files"]
        modes = {True: "lfs", False: "regular"}
        told = [
            {
                "path": file["path"],
                "uploadMode": modes[file["path"].endswith((".safetensors", ".png"))],
                "shouldIgnore": False,
                "oid": None,
            }
            for file in files
        ]
        return self.answer(200, {"files": told})

    def large_batch(self, body, name):
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{one['oid']}", "header": {}}},
            }
            for one in json.loads(body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def put_large(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "BadDigest", "other bytes than promised")
        self.hub.large[oid] = body
        return self.answer(200)

    def commit(self, body, name, _):
        files = dict(self.hub.files(name))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.setdefault(name, []).append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        self.hub.models[name]["files"] = files
        oid = self.hub.commit_of(name)
        return self.answer(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def info(self, body, name, revision=None):
        if not self.seen(name):
            return None
        sha = self.hub.commit_of(name)
        if revision not in (None, "main", sha):
            return self.refuse(404, "RevisionNotFound", f"invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in self.hub.files(name)]
        return self.answer(
            200, {"id": name, "modelId": name, "sha": sha, "private": False, "siblings": siblings, "tags": []}
        )

    def tree(self, body, name, _):
        if not self.seen(name):
            return None
        files = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.hub.files(name).items()
        ]
        return self.answer(200, files)

    def resolve(self, body, name, revision, path):
        if not self.seen(name):
            return None
        data = self.hub.files(name).get(path)
        commit = self.hub.commit_of(name)
        if data is None:
            return self.answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = hashlib.sha256(data).hexdigest()
        return self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=commit, Content_Length=str(len(data)))


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_NAME}/preupload/(\w+)", "preupload"),
    (rf"POST /api/models/{_NAME}/commit/(\w+)", "commit"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "large_batch"),
    (r"PUT /large/(\w+)", "put_large"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"GET /api/models/{_NAME}/revision/([\w.-]+)", "info"),
    (rf"GET /api/models/{_NAME}/tree/([\w.-]+)", "tree"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([\w.-]+)/(.+)", "resolve"),
]
