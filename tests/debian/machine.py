"""The Debian guest as tests make it and wait for it."""
from e2e import guest
from e2e.guest import wait_for

# cloud-init is done a minute after power-on, alone on the machine.
PATIENCE = 420


def debian(**more):
    return {"image": guest.DEBIAN, "memory_mb": 512, "vcpus": 2, **more}


def wait(api, *what, name="web"):
    return wait_for(api, name, *what, patience=PATIENCE)
