"""What a VM boots from, and that it gets the hardware it was given."""
import os
import subprocess

import pytest

from e2e.guest import TINY, UP, booted, console, direct, do, from_disk, in_guest, make, wait_console, wait_ready
from lib.vms import create_body, get_vm


def blank(directory, size, name="blank.qcow2"):
    path = os.path.join(str(directory), name)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    return path


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_kernel_boots_directly(api, machine):
    spec = direct(machine)
    del spec["boot"]["cmdline"]
    vm = booted(api, **spec)
    assert vm["state"] == "running" and vm["runtime"]["pid"] and vm["runtime"]["accel"] in ("tcg", "kvm")
    assert UP in console(api)


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_own_command_line_reaches_the_kernel(api, machine):
    line = "console=ttyS0 quiet hello=a,b,,c" + (" tsc_early_khz=2500000" if machine == "microvm" else "")
    spec = direct(machine)
    spec["boot"]["cmdline"] = line
    booted(api, **spec)
    assert line in in_guest(api, "cat /proc/cmdline")


def test_disk_boots_by_bios(api):
    booted(api, **from_disk())
    assert in_guest(api, "test -d /sys/firmware/efi && echo efi || echo bios") == "bios"


def test_disk_boots_by_uefi(api):
    booted(api, **from_disk(uefi=True))
    assert in_guest(api, "test -d /sys/firmware/efi && echo efi || echo bios") == "efi"


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_guest_gets_its_vcpus_memory_and_grown_disk(api, machine):
    booted(api, **direct(machine, image=TINY, vcpus=2, memory_mb=192, disk_gb=3))
    cpus, memory_kb, sectors = in_guest(
        api, "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; cat /sys/block/vda/size").split()
    assert cpus == "2"
    assert 128 * 1024 < int(memory_kb) <= 192 * 1024
    assert int(sectors) * 512 == 3 << 30


def test_disk_without_a_size_has_the_images(api):
    booted(api, **direct(image=TINY))
    assert int(in_guest(api, "cat /sys/block/vda/size")) * 512 == 512 << 20


def test_image_is_never_written(api, tmp_path):
    image = blank(tmp_path, "64M")
    with open(image, "rb") as file:
        before = file.read()
    booted(api, **direct(image=image))
    in_guest(api, "echo written | dd of=/dev/vda conv=fsync 2>/dev/null")
    do(api, "kill")
    with open(image, "rb") as file:
        assert file.read() == before


def test_disk_smaller_than_the_image_is_refused(vmmd, api, tmp_path):
    answer = api.post("/v1/vms", create_body("web", "qemu", image=blank(tmp_path, "3G"), disk_gb=2), prefer_wait=60)
    assert (answer.status, answer.code) == (422, "api::invalid_field"), answer
    assert answer.context["pointer"] == "/spec/disk_gb"
    assert api.get("/v1/vms/web").status == 404


def test_patch_takes_effect_at_the_next_start(api, tmp_path):
    """Also the disk grows, and what the guest wrote stays."""
    booted(api, **direct(image=blank(tmp_path, "64M"), disk_gb=1))
    in_guest(api, "echo kept-by-the-disk | dd of=/dev/vda conv=fsync 2>/dev/null")
    do(api, "kill")
    answer = api.patch("/v1/vms/web", {"spec": {"vcpus": 2, "memory_mb": 192, "disk_gb": 2}})
    assert answer.status == 200, answer
    do(api, "start")
    wait_ready(api)
    cpus, memory_kb, sectors, text = in_guest(
        api, "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; cat /sys/block/vda/size; head -n 1 /dev/vda").split()
    assert cpus == "2" and 128 * 1024 < int(memory_kb) <= 192 * 1024
    assert int(sectors) * 512 == 2 << 30
    assert text == "kept-by-the-disk"


@pytest.mark.parametrize("field", [{"vcpus": 2}, {"memory_mb": 192}, {"disk_gb": 2}])
def test_patch_of_hardware_is_refused_while_it_runs(api, field):
    make(api, start=True, **direct(image=TINY))
    answer = api.patch("/v1/vms/web", {"spec": field})
    assert (answer.status, answer.code) == (409, "vm::invalid_state"), answer
    assert get_vm(api)["generation"] == 1


def test_disk_never_shrinks(api):
    make(api, **direct(image=TINY, disk_gb=2))
    answer = api.patch("/v1/vms/web", {"spec": {"disk_gb": 1}})
    assert (answer.status, answer.code) == (422, "api::invalid_field"), answer


def test_seeds_commands_run_on_microvm_too(api):
    seed = {"user_data": "#cloud-config\nhostname: tiny-one\nruncmd:\n  - echo \"seeded $(hostname)\"\n"}
    booted(api, **direct("microvm", cloud_init=seed))
    wait_console(api, "seeded tiny-one")
