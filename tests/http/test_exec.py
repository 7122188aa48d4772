"""What exec, files and ssh refuse, and what they know, without a guest."""
import pytest

from lib.vms import create_body


@pytest.fixture
def web(api):
    assert api.post("/v1/vms", create_body("web", start=True), prefer_wait=60).status == 200
    yield api
    api.delete("/v1/vms/web", prefer_wait=60)


@pytest.mark.parametrize("body, pointer", [
    ({}, "/command"), ({"command": []}, "/command"), ({"command": ["a"], "script": "b"}, "/command"), ({"command": "ls"}, "/command"),
    ({"command": [1]}, "/command"), ({"command": ["-x"]}, "/command"), ({"script": ""}, "/script"), ({"script": 1}, "/script"),
    ({"script": "a", "env": {"9": "x"}}, "/env/9"), ({"script": "a", "env": {"A;id": "x"}}, "/env/A;id"),
    ({"script": "a", "env": {"A": 1}}, "/env/A"), ({"script": "a", "env": []}, "/env"), ({"script": "a", "cwd": ""}, "/cwd"),
    ({"script": "a", "user": "-u"}, "/user"), ({"script": "a", "user": "a b"}, "/user"), ({"script": "a", "stdin_base64": "*"}, "/stdin_base64"),
    ({"script": "a", "stdin_base64": 1}, "/stdin_base64"), ({"script": "a", "timeout_s": 0}, "/timeout_s"),
    ({"script": "a", "timeout_s": 86401}, "/timeout_s"), ({"script": "a", "max_output": -1}, "/max_output"),
    ({"script": "a", "via": "telnet"}, "/via"), ({"script": "a", "shell": "x"}, "/shell"),
])
def test_a_bad_request_names_its_field(web, body, pointer):
    answer = web.post("/v1/vms/web/exec", body)
    assert (answer.status, answer.code, answer.context["pointer"]) == (422, "api::invalid_field", pointer)


def test_noop_has_no_guests(web):
    assert web.post("/v1/vms/web/exec", {"command": ["true"]}).code == "backend::not_available"
    assert web.get("/v1/vms/web/files?path=/etc").code == "backend::not_available"
    assert web.request("PUT", "/v1/vms/web/files?path=/tmp/x", body=b"x" * 100000).code == "backend::not_available"
    assert web.post("/v1/vms/web/files/mkdir", {"path": "/x"}).code == "backend::not_available"


def test_files_name_their_bad_field(web):
    for body, pointer in (({}, "/path"), ({"path": "/x", "mode": "rw"}, "/mode"), ({"path": "/x", "parents": 1}, "/parents")):
        assert web.post("/v1/vms/web/files/mkdir", body).context["pointer"] == pointer
    assert web.post("/v1/vms/web/files/rename", {"from": "/x"}).context["pointer"] == "/to"
    assert web.get("/v1/vms/web/files").context["pointer"] == "/path"
    assert web.delete("/v1/vms/web/files").context["pointer"] == "/path"


def test_ssh_access_of_a_vm_without_a_key(web):
    access = web.get("/v1/vms/web/ssh").json
    assert access["user"] == "vm" and access["private_key_path"] is None and access["host_key"] is None
    assert web.get("/v1/vms/nobody/ssh").code == "vm::not_found"


def test_commands_are_counted(web):
    assert "vmmd_execs_running 0" in web.get("/metrics").text
