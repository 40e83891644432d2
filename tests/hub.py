"""A model hub on the loopback: enough of the real one's protocol for its clients to run unmodified.

    with Hub() as hub:
        hub.add("org/model", folder)
        hub.add("org/texts", folder, kind="dataset", gated=True)
        subprocess.run(command, env=hub.env(home))

Spoken: repository information, file trees, ``paths-info``; files by revision or commit, with ETag, commit and size
headers, HEAD and ranges; large kinds of file redirect to content addresses, as the hub sends them to its CDN; gated
repositories and wrong tokens; errors by their codes. Of uploads, for the names in ``writers``: a new repository, the
check of a card, ``preupload``, git-lfs's batch and basic transfer, and the commit; not chunked storage (xet). Whatever
else is asked for (the dataset viewer included) is answered 404. :meth:`Hub.fail` breaks or stalls transfers,
:meth:`Hub.damage` spoils them, :meth:`Hub.refuse` answers with an error or not at all; ``downloads`` counts transfers.

Clients read HF_ENDPOINT when they are imported: use them in a process of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import ModelCard

LARGE = (".safetensors", ".parquet", ".bin", ".gz", ".model")  # kinds that the hub keeps outside git
_API = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)(?:/(?P<rest>.*))?)?")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_FILE = re.compile(r"/(?P<set>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repo:
    """A repository: what each branch or tag points to, and the files of each commit."""

    name: str
    kind: str
    gated: bool
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with files whose name ends so: no byte at or beyond ``at`` arrives."""

    suffix: str
    at: int
    stall: float  # seconds of silence before the connection closes
    times: int


@dataclass
class Refusal:
    """What goes wrong with requests in whose path ``part`` stands."""

    part: str
    status: int  # 0: silence
    stall: float
    times: int


class Hub:
    """The server. A context manager; listens on a free port of 127.0.0.1.

    Attributes:
        downloads: ``repo/file`` to how many transfers of its content were begun.
        requests: every request, as ``METHOD /path``.
        tokens: token to the gated repositories it opens.
        writers: token to the user or organisation under whose name it may write.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, tuple[str, bytes]] = {}  # sha256 to repo/file and content
        self.tokens: dict[str, set[str]] = {}
        self.writers: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.refusals: list[Refusal] = []
        self.damaged: Counter[str] = Counter()  # end of a name to how many transfers are yet to be spoilt
        self.downloads: Counter[str] = Counter()
        self.requests: list[str] = []
        self.lock = Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"  # another host to the clients

    def __enter__(self) -> Hub:
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, folder: Path, *, kind: str = "model", revision: str = "main", gated: bool = False) -> str:
        """Commit a folder's files to a branch or tag of a repository. Returns the commit."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.commit(self.repos.setdefault((kind, name), Repo(name, kind, gated)), files, revision)

    def commit(self, repo: Repo, files: dict[str, bytes], revision: str = "main") -> str:
        """Commit files to a branch or tag. Returns the commit."""
        kind, name = repo.kind, repo.name
        listing = "".join(f"{path} {hashlib.sha256(data).hexdigest()}\n" for path, data in files.items())
        commit = hashlib.sha1(f"{kind} {name}\n{listing}".encode()).hexdigest()
        repo.refs[revision] = commit
        repo.commits[commit] = files
        for path, data in files.items():
            self.blobs[hashlib.sha256(data).hexdigest()] = (f"{name}/{path}", data)
        return commit

    def fail(self, suffix: str, *, at: int, stall: float = 0, times: int = 10**6) -> None:
        """Break the next transfers of files whose name ends with ``suffix`` before byte ``at``."""
        self.faults.append(Fault(suffix, at, stall, times))

    def refuse(self, part: str, status: int, *, stall: float = 0, times: int = 10**6) -> None:
        """Answer the next requests whose path has ``part`` in it with an HTTP status; 0: only close, after a while."""
        self.refusals.append(Refusal(part, status, stall, times))

    def damage(self, suffix: str, times: int = 10**6) -> None:
        """Send the next contents of files whose name ends with ``suffix`` with other bytes, and the right length."""
        self.damaged[suffix] = times

    def env(self, home: Path, *, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """An environment in which every client uses this hub, with its caches under ``home``."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        env = {key: value for key, value in os.environ.items() if not key.upper().startswith(ours)}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        return env | ({"HF_TOKEN": token} if token else {}) | ({"HF_HUB_OFFLINE": "1"} if offline else {})


@dataclass(eq=False)
class RefusedError(Exception):
    """An answer with an error status, as the hub words it in its headers."""

    status: HTTPStatus
    message: str
    code: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {url.path}")
            refusal = next((r for r in self.hub.refusals if r.times and r.part in url.path), None)
            if refusal:
                refusal.times -= 1
        try:
            if refusal:
                time.sleep(refusal.stall)
                if not refusal.status:
                    raise BrokenPipeError
                raise RefusedError(HTTPStatus(refusal.status), "As the test wants it")
            self._check_token()
            if url.path == "/api/repos/create":
                self._create(json.loads(body))
            elif url.path == "/api/validate-yaml":
                self._validate(json.loads(body)["content"])
            elif self.command == "PUT" and url.path.startswith("/lfs/"):
                self._store(url.path.removeprefix("/lfs/"), body)
            elif batch := _BATCH.fullmatch(url.path):
                self._batch(self._repo("model", batch["repo"]), json.loads(body))
            elif (api := _API.fullmatch(url.path)) and api["what"] in ("preupload", "commit"):
                self._write(self._repo(api["kind"], api["repo"]), api["what"], body)
            elif api:
                self._api(api, parse_qs(url.query), parse_qs(body.decode()))
            elif file := _FILE.fullmatch(url.path):
                self._file(file)
            elif url.path.startswith("/cdn/"):
                self._content(url.path.removeprefix("/cdn/"))
            else:
                raise RefusedError(HTTPStatus.NOT_FOUND, "Not found")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self._json({"error": refused.message}, refused.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _check_token(self) -> None:
        if self._token and self._token not in self.hub.tokens:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header")

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo and repo.private and self.hub.writers.get(self._token) != name.split("/")[0]:
            repo = None
        if repo is None:
            if not self._token:  # the hub does not tell strangers whether a repository exists
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", "RepoNotFound")
            raise RefusedError(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")
        return repo

    def _check_writer(self, name: str) -> None:
        if self.hub.writers.get(self._token) != name.split("/")[0]:
            raise RefusedError(HTTPStatus.FORBIDDEN, "You don't have the rights to write here")

    def _create(self, asked: dict[str, str]) -> None:
        kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        self._check_writer(name)
        if (kind, name) in self.hub.repos:
            raise RefusedError(HTTPStatus.CONFLICT, f"You already created this {kind} repo")
        repo = self.hub.repos[kind, name] = Repo(name, kind, False, asked.get("visibility") == "private")
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._json({"url": f"{self.hub.url}/{name}"})

    def _validate(self, text: str) -> None:
        """Refuse a model card as the hub does, by its client's own reading of the metadata."""
        try:
            ModelCard(text, ignore_metadata_errors=False)
            self._json({"errors": [], "warnings": []})
        except (ValueError, yaml.YAMLError) as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, HTTPStatus.BAD_REQUEST)

    def _batch(self, repo: Repo, asked: dict[str, list[dict[str, object]]]) -> None:
        self._check_writer(repo.name)
        upload = {str(o["oid"]): {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}} for o in asked["objects"]}
        wanted = [o if o["oid"] in self.hub.blobs else o | {"actions": upload[str(o["oid"])]} for o in asked["objects"]]
        self._json({"objects": wanted})

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Content does not match its digest")
        self.hub.blobs[oid] = ("uploaded", body)
        self._json({})

    def _write(self, repo: Repo, what: str, body: bytes) -> None:
        self._check_writer(repo.name)
        if what == "preupload":
            modes = {f["path"]: "lfs" if f["path"].endswith(LARGE) else "regular" for f in json.loads(body)["files"]}
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
            return
        files = dict(repo.commits[repo.refs["main"]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]][1]
        commit = self.hub.commit(repo, files)
        self._json({"commitUrl": f"{self.hub.url}/{repo.name}/commit/{commit}", "commitOid": commit})

    def _check_access(self, repo: Repo) -> None:
        if not repo.gated or repo.name in self.hub.tokens.get(self._token, set()):
            return
        restricted = f"Access to {repo.kind} {repo.name} is restricted"
        if not self._token:
            message = f"{restricted}. You must have access to it and be authenticated to access it."
            raise RefusedError(HTTPStatus.UNAUTHORIZED, message, "GatedRepo")
        message = f"{restricted} and you are not in the authorized list. Visit its page to ask for access."
        raise RefusedError(HTTPStatus.FORBIDDEN, message, "GatedRepo")

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _api(self, match: re.Match[str], query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        repo = self._repo(match["kind"], match["repo"])
        what, rest = match["what"], match["rest"] or ""
        if what in (None, "revision"):  # public even when the files are gated
            commit = self._commit(repo, unquote(rest) or "main")
            siblings: list[dict[str, object]] = [{"rfilename": path} for path in repo.commits[commit]]
            if query.get("blobs"):
                tree = {str(e["path"]): e for e in _tree(repo.commits[commit], "", recursive=True)}
                for file in siblings:
                    entry = tree[str(file["rfilename"])]
                    file |= {"size": entry["size"], "blobId": entry["oid"]}
                    if "lfs" in entry:
                        file["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}
            about = {"id": repo.name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
            self._json(about | {"gated": "manual" if repo.gated else False, "disabled": False})
        elif what == "tree":
            revision, _, folder = rest.partition("/")
            files = repo.commits[self._commit(repo, unquote(revision))]
            self._json(_tree(files, unquote(folder), query.get("recursive") == ["true"]))
        elif what == "paths-info":
            files = repo.commits[self._commit(repo, unquote(rest))]
            everything = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._json([everything[p] for p in form.get("paths", []) if p in everything])
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "Not found")

    def _file(self, match: re.Match[str]) -> None:
        repo = self._repo("dataset" if match["set"] else "model", match["repo"])
        self._check_access(repo)
        commit, path = self._commit(repo, unquote(match["revision"])), unquote(match["path"])
        if path not in repo.commits[commit]:
            refused = RefusedError(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound")
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message, "X-Repo-Commit": commit}
            self._json({"error": refused.message}, refused.status, headers)
            return
        data = repo.commits[commit][path]
        digest = hashlib.sha256(data).hexdigest()
        if not path.endswith(LARGE):
            self._content(digest, {"X-Repo-Commit": commit, "ETag": f'"{_blob(data)}"'}, f"{repo.name}/{path}")
            return
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", f"{self.hub.cdn}/{digest}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, digest: str, headers: dict[str, str] | None = None, name: str = "") -> None:
        stored, data = self.hub.blobs[digest]
        name, size, start, end = name or stored, len(data), 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            if start >= size:
                raise RefusedError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "Range not satisfiable")
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        for key, value in ({"ETag": f'"{digest}"'} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._send(name, data, start, end)

    def _send(self, name: str, data: bytes, start: int, end: int) -> None:
        with self.hub.lock:
            self.hub.downloads[name] += 1
            fault = next((f for f in self.hub.faults if f.times and name.endswith(f.suffix) and f.at < end), None)
            if fault:
                fault.times -= 1
            spoilt = next((s for s, times in self.hub.damaged.items() if times and name.endswith(s)), None)
            if spoilt:
                self.hub.damaged[spoilt] -= 1
                data = data[:-100] + bytes(100)
        if fault is None:
            self.wfile.write(data[start:end])
            return
        self.wfile.write(data[start : max(start, fault.at)])
        self.wfile.flush()
        time.sleep(fault.stall)
        self.close_connection = True

    def _json(self, value: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _blob(data: bytes) -> str:
    """The id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in files if path.startswith(prefix)]
    if folder and not inside:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"{folder} does not exist", "EntryNotFound")
    parents = {str(p) for path in inside for p in Path(path).parents if str(p).startswith(prefix) and str(p) != "."}
    entries: list[dict[str, object]] = [
        {"type": "directory", "path": p, "oid": _blob(p.encode())} for p in sorted(parents)
    ]
    for path in inside:
        data = files[path]
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return [e for e in entries if recursive or "/" not in str(e["path"]).removeprefix(prefix)]
