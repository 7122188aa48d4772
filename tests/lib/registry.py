"""A small OCI registry on loopback: manifests, an index, blobs, and tokens as real ones give them."""
import base64
import hashlib
import json
from urllib.parse import parse_qs, urlsplit

from lib.webserver import Server

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
SEED_LAYER = "application/vnd.cloudnebula.qcow2.layer.v1"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry(Server):
    """auth: None, "token" (anonymous token), "user:password" (token for that), "basic user:password"."""

    def __init__(self, auth=None, **kw):
        super().__init__(**kw)
        self.auth, self.blobs, self.manifests, self.asked_tokens = auth, {}, {}, []
        self.realm = self.url("token")
        self.rules["/token"] = self.token
        self.plain_files, self.plain = self.plain, self.registry

    def ref(self, repository="vms/disk", tag="latest"):
        return f"oci://{self.host}:{self.port}/{repository}:{tag}"

    def push_blob(self, data):
        self.blobs[digest(data)] = data
        return digest(data)

    def push(self, *layers, repository="vms/disk", tag="latest", **extra):
        """layers: (media type, bytes). The manifest's digest."""
        descriptors = [{"mediaType": kind, "digest": self.push_blob(data), "size": len(data)} for kind, data in layers]
        body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "application/vnd.oci.empty.v1+json",
                           "digest": digest(b"{}"), "size": 2}, "layers": descriptors, **extra}).encode()
        for name in (tag, digest(body)):
            self.manifests[repository, name] = (MANIFEST, body)
        return digest(body)

    def push_index(self, entries, repository="vms/disk", tag="latest"):
        """entries: (architecture, digest of a manifest)."""
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": name, "size": 1, "platform": {"os": "linux", "architecture": arch}}
            for arch, name in entries]}).encode()
        for name in (tag, digest(body)):
            self.manifests[repository, name] = (INDEX, body)

    def allowed(self, handler):
        given = handler.headers.get("Authorization", "")
        if self.auth is None:
            return True
        if self.auth.startswith("basic "):
            return given == "Basic " + base64.b64encode(self.auth[6:].encode()).decode()
        return given == "Bearer good-token"

    def challenge(self):
        if self.auth.startswith("basic "):
            return 'Basic realm="here"'
        return f'Bearer realm="{self.realm}",service="registry.test",scope="repository:vms/disk:pull"'

    def token(self, handler):
        self.asked_tokens.append((parse_qs(urlsplit(handler.path).query), handler.headers.get("Authorization")))
        want = "Basic " + base64.b64encode(self.auth.encode()).decode()
        if self.auth != "token" and handler.headers.get("Authorization") != want:
            return self.answer(handler, 401, b"{}")
        return self.answer(handler, 200, b'{"token":"good-token"}')

    def registry(self, handler):
        parts = handler.path.lstrip("/").split("/")
        if parts[0] != "v2" or len(parts) < 4:
            return self.plain_files(handler)
        if not self.allowed(handler):
            return self.answer(handler, 401, b"{}", {"WWW-Authenticate": self.challenge()})
        repository, kind, name = "/".join(parts[1:-2]), parts[-2], parts[-1]
        if kind == "manifests" and (repository, name) in self.manifests:
            media_type, body = self.manifests[repository, name]
            return self.answer(handler, 200, body, {"Content-Type": media_type})
        if kind == "blobs" and name in self.blobs:
            return self.blob(handler, name)
        return self.answer(handler, 404, b'{"errors":[]}')

    def blob(self, handler, name):
        data, wanted = self.blobs[name], handler.headers.get("Range")
        if wanted:
            begin = int(wanted.split("=")[1].split("-")[0])
            return self.answer(handler, 206, data[begin:], {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"})
        return self.answer(handler, 200, data)
