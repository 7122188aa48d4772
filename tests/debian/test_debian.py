"""A stock Debian 12 cloud guest in which something goes wrong. Its life when all goes well is in test_proof.py."""
from debian.machine import PATIENCE, debian
from e2e.guest import condition, do, make
from lib.vms import eventually, get_vm

USER_DATA = """#cloud-config
# Passed as it is: this comment too, and ünicode.
runcmd:
  - [sh, -c, 'echo the step that fails >&2; exit 7']
write_files:
  - path: /etc/motd
    content: "from user-data\n"
"""


def test_debian_tells_what_failed_in_cloud_init(api):
    make(api, start=True, **debian(cloud_init={"hostname": "sad", "user_data": USER_DATA}))
    failed = eventually(lambda: condition(get_vm(api), "cloud_init"),
                        lambda c: c["reason"] not in ("booting", "running"), PATIENCE)
    assert failed["status"] is False and failed["reason"] == "error"
    assert "runcmd" in failed["message"] and "scripts" in failed["message"], failed
    # Who waits for it is told why it does not come.
    answer = api.get("/v1/vms/web/wait", query={"for": "cloud_init", "timeout": 1})
    assert (answer.status, answer.code) == (504, "wait::timed_out") and "runcmd" in answer.json["causes"][0]
    do(api, "kill")
    # It is told still when the guest is gone.
    assert "runcmd" in condition(get_vm(api), "cloud_init")["message"]
