"""Images that are artifacts of an OCI registry."""
import base64
import gzip
import json
import os

import pytest

from lib.registry import SEED_LAYER, Registry, digest
from lib.vms import make_vm
from lib.webserver import Server
from lib.images import DISK, files, pull, pulled, refused, sha256, until


@pytest.fixture
def registry():
    with Registry() as server:
        yield server


def guarded(auth):
    return Registry(auth)


@pytest.mark.parametrize("kind", [SEED_LAYER, "application/octet-stream", "application/vnd.example.disk.v1+raw", "application/x-whatever"])
def test_one_layer_is_the_disk(vmmd, registry, kind):
    registry.push((kind, DISK))
    image = pulled(vmmd.client(), registry.ref(), "disk")
    assert image["sha256"] == sha256(DISK) and image["url"] == registry.ref()
    until(lambda: files(vmmd) == [os.path.basename(image["path"])])


def test_name_is_the_repository_and_tag(vmmd, registry):
    registry.push((SEED_LAYER, DISK), tag="v1.2")
    assert pulled(vmmd.client(), registry.ref(tag="v1.2"))["name"] == "disk-v1.2"


def test_by_digest(vmmd, registry):
    name = registry.push((SEED_LAYER, DISK))
    url = f"oci://{registry.host}:{registry.port}/vms/disk@{name}"
    assert pulled(vmmd.client(), url, "disk")["sha256"] == sha256(DISK)
    registry.manifests["vms/disk", name] = ("x", b'{"layers":[]}')
    assert pull(vmmd.client(), url, "other").code == "oci::pull_failed"


def test_index_is_followed_to_this_kind_of_machine(vmmd, registry):
    arm = registry.push((SEED_LAYER, b"arm" * 1000), tag="arm")
    here = registry.push((SEED_LAYER, DISK), tag="here")
    registry.push_index([("arm64", arm), ("amd64", here)])
    assert pulled(vmmd.client(), registry.ref(), "disk")["sha256"] == sha256(DISK)
    registry.push_index([("arm64", arm), ("riscv64", arm)])
    answer = pull(vmmd.client(), registry.ref(), "x")
    assert answer.code == "oci::pull_failed" and "linux/amd64" in answer.json["detail"]


def test_packed_layer(vmmd, registry):
    registry.push(("application/vnd.example.disk+gzip", gzip.compress(DISK)))
    assert pulled(vmmd.client(), registry.ref(), "disk")["packing"] == "gzip"


def test_create_from_a_registry(vmmd, registry):
    registry.push((SEED_LAYER, DISK))
    vm = make_vm(vmmd.client(), "web", image_url=registry.ref())
    assert vm["spec"]["image_url"] == registry.ref()


@pytest.mark.parametrize("layers, word", [
    ([("application/vnd.oci.image.layer.v1.tar+gzip", b"tar")], "containers"), ([], "containers"),
    ([("application/octet-stream", b"a"), ("application/octet-stream", b"b")], "2 layers"),
])
def test_what_is_no_disk(vmmd, registry, layers, word):
    registry.push(*layers)
    answer = refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")
    assert word in answer.json["detail"]


def test_the_layer_that_is_a_disk_for_sure_is_taken(vmmd, registry):
    registry.push(("application/octet-stream", b"readme"), (SEED_LAYER, DISK))
    assert pulled(vmmd.client(), registry.ref(), "disk")["sha256"] == sha256(DISK)


def test_no_such_tag(vmmd, registry):
    answer = refused(vmmd, pull(vmmd.client(), registry.ref(tag="none"), "x"), 502, "oci::pull_failed")
    assert answer.context["http_status"] == 404


def test_blob_with_another_digest(vmmd, registry):
    registry.push((SEED_LAYER, DISK))
    registry.blobs[digest(DISK)] = DISK[:-1] + b"?"
    refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")


def test_known_digest_is_looked_at_too(vmmd, registry):
    registry.push((SEED_LAYER, DISK))
    assert pulled(vmmd.client(), registry.ref(), "disk", sha256=sha256(DISK))["sha256_verified"] is True
    answer = pull(vmmd.client(), registry.ref(), "x", sha256="0" * 64)
    assert answer.code == "image::checksum_mismatch" and answer.context["actual"] == sha256(DISK)
    assert not [path for path, _ in registry.seen if "/blobs/" in path][1:]


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"layers":[{"digest":"md5:1"}]}', b'{"manifests":[{"digest":"sha256:12"}]}', b""],
                         ids=["text", "array", "md5", "short digest", "empty"])
def test_manifests_that_are_none(vmmd, registry, body):
    registry.manifests["vms/disk", "latest"] = ("application/json", body)
    refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")


def test_index_that_names_itself(vmmd, registry):
    registry.push_index([("amd64", "sha256:" + "1" * 64)])
    registry.manifests["vms/disk", "sha256:" + "1" * 64] = registry.manifests["vms/disk", "latest"]
    refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")


def test_cut_blob_is_gone_on_with(vmmd, registry):
    registry.push((SEED_LAYER, DISK))
    path = f"/v2/vms/disk/blobs/{digest(DISK)}"
    registry.rules[path] = registry.short(DISK, 400000)
    assert pull(vmmd.client(), registry.ref(), "x").code == "oci::pull_failed"
    del registry.rules[path]
    assert pulled(vmmd.client(), registry.ref(), "x")["sha256"] == sha256(DISK)
    assert registry.gets(path)[-1]["Range"]
    until(lambda: len(files(vmmd)) == 1)


# --- credentials ---

def test_anonymous_token(vmmd):
    with guarded("token") as registry:
        registry.push((SEED_LAYER, DISK))
        assert pulled(vmmd.client(), registry.ref(), "disk")["sha256"] == sha256(DISK)
        query, authorization = registry.asked_tokens[0]
        assert query == {"service": ["registry.test"], "scope": ["repository:vms/disk:pull"]} and authorization is None
        assert len(registry.asked_tokens) == 1


def docker_config(tmp_path, registry, **entry):
    (tmp_path / "config.json").write_text(json.dumps({"auths": {f"{registry.host}:{registry.port}": entry}}))
    return {"DOCKER_CONFIG": str(tmp_path)}


@pytest.mark.parametrize("entry", [{"auth": base64.b64encode(b"me:secret").decode()}, {"username": "me", "password": "secret"}],
                         ids=["auth", "username"])
@pytest.mark.parametrize("auth", ["me:secret", "basic me:secret"])
def test_credentials_of_the_docker_config(daemons, tmp_path, auth, entry):
    with guarded(auth) as registry:
        registry.push((SEED_LAYER, DISK))
        vmmd = daemons(env=docker_config(tmp_path, registry, **entry))
        assert pulled(vmmd.client(), registry.ref(), "disk")["sha256"] == sha256(DISK)
        assert "secret" not in vmmd.log() and base64.b64encode(b"me:secret").decode() not in vmmd.log()


def test_no_credentials(daemons, tmp_path):
    with guarded("basic me:secret") as registry:
        registry.push((SEED_LAYER, DISK))
        vmmd = daemons(env={"DOCKER_CONFIG": str(tmp_path)})
        answer = refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")
        assert "credentials" in answer.json["detail"]


def test_credentials_stay_with_their_registry(daemons, tmp_path):
    """A blob that lies elsewhere is fetched without them."""
    with guarded("basic me:secret") as registry, Server({"blob": DISK}) as elsewhere:
        registry.push((SEED_LAYER, DISK))
        registry.blob = lambda handler, name: registry.answer(handler, 307, b"", {"Location": elsewhere.url("blob")})
        vmmd = daemons(env=docker_config(tmp_path, registry, auth=base64.b64encode(b"me:secret").decode()))
        assert pulled(vmmd.client(), registry.ref(), "disk")["sha256"] == sha256(DISK)
        assert elsewhere.gets("/blob")[0]["Authorization"] is None


@pytest.mark.parametrize("auth", ["token", "basic me:secret"])
def test_the_token_of_github_goes_to_nobody_else(daemons, tmp_path, auth):
    with guarded(auth) as registry:
        registry.push((SEED_LAYER, DISK))
        vmmd = daemons(env={"GITHUB_TOKEN": "ghs_0123456789", "DOCKER_CONFIG": str(tmp_path)})
        assert pull(vmmd.client(), registry.ref(), "x").status == (200 if auth == "token" else 502)
        said = [authorization for _, authorization in registry.asked_tokens] + [headers["Authorization"] for _, headers in registry.seen]
        told = " ".join(filter(None, said))
        assert "ghs_" not in told and base64.b64encode(b"ghs_0123456789")[:8].decode() not in told and "Basic" not in told


@pytest.mark.parametrize("realm", ["http://example.invalid/token", "http://localhost:1@example.invalid/token", "file:///etc/passwd", ""])
def test_token_from_nowhere(vmmd, realm):
    with guarded("token") as registry:
        registry.push((SEED_LAYER, DISK))
        registry.realm = realm
        refused(vmmd, pull(vmmd.client(), registry.ref(), "x"), 502, "oci::pull_failed")


@pytest.mark.parametrize("url", ["oci://127.0.0.1:1/UPPER:x", "oci://127.0.0.1:1/a/../b:x", "oci://127.0.0.1:1/a:b c", "oci://127.0.0.1:1/a@md5:12", "oci://me@127.0.0.1:1/a:b",
                                 "oci://127.0.0.1:1/:x"])
def test_references_that_are_none(vmmd, url):
    answer = pull(vmmd.client(), url, "x")
    assert answer.code in ("oci::pull_failed", "api::invalid_field"), answer
    until(lambda: files(vmmd) == [])
