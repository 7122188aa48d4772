#!/bin/bash
# Builds a stock Debian 12 cloud guest from Debian's packages: OUTDIR/debian-12.qcow2, and the same as debian-12.qcow2.xz
# for what downloads it. BIOS or UEFI, serial console, systemd, netplan, cloud-init, sshd, the guest agent: what Debian's own
# "genericcloud" image has of it, as Debian configures it.
#
#     contrib/guest/debian.sh build/guest          # about a minute; no root needed where user namespaces work
#     contrib/guest/debian.sh --packages | --key
#
# What was built is kept by a key, of this recipe and of the packages' versions of today, in $VMMD_GUEST_CACHE (by default
# ${XDG_CACHE_HOME:-~/.cache}/vmmd/guest): the same guest is not built twice on a machine. The two newest are kept.
set -euo pipefail
export LC_ALL=C
umask 022

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=contrib/guest/disk.sh
. "$here/disk.sh"
HOST_PACKAGES="mmdebstrap debian-archive-keyring xz-utils $DISK_PACKAGES"

SUITE=bookworm
MIRROR=${VMMD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
GUEST_PACKAGES="linux-image-cloud-amd64 initramfs-tools zstd systemd-sysv systemd-resolved systemd-timesyncd libnss-resolve udev dbus
    netplan.io cloud-init cloud-guest-utils openssh-server qemu-guest-agent sudo fdisk e2fsprogs iproute2 iputils-ping less
    ca-certificates curl procps locales"
DISK_MIB=2048
ROOT_LABEL=debian-root
FSTAB="LABEL=$ROOT_LABEL / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1" # before the initramfs is made
# shellcheck disable=SC2034 # disk.sh's
STAMP=1700000000 # the EFI program's time
CMDLINE="console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"

say() { echo "debian guest: $*"; }
die() { echo "debian guest: $*" >&2; exit 1; }

# The versions of what the guest is made of by name, and of the kernel behind the metapackage, as apt knows them here.
versions() {
    local names kernel
    names=$(tr -s ' \n' '\n' <<<"$GUEST_PACKAGES" | grep -v -e '-$')
    kernel=$(apt-cache show --no-all-versions linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p')
    [ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64: run apt-get update first"
    # shellcheck disable=SC2086 # a list
    apt-cache show --no-all-versions $names $kernel | sed -n 's/^\(Package\|Version\): //p'
}

key() { { cat "$here/debian.sh" "$here/disk.sh" && versions; } | sha256sum | cut -c 1-16; }

case ${1:-} in
--packages)
    echo "$HOST_PACKAGES"
    exit 0
    ;;
--key)
    key
    exit 0
    ;;
esac
[ $# -eq 1 ] || { echo "usage: debian.sh OUTDIR | --packages | --key" >&2; exit 2; }

mkdir -p "$1"
out=$(cd "$1" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
cache=${VMMD_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/vmmd/guest}
mkdir -p "$cache"
key=$(key)
kept=$cache/debian-12-$key.qcow2

# The system, as a tar archive: whoever builds it, root owns its files.
bootstrap() {
    local hook=$work/customize
    # Runs outside, with the tree as $1.
    cat >"$hook" <<'HOOK'
set -e
cd "$1"
rm -f etc/hostname etc/resolv.conf etc/ssh/ssh_host_* var/lib/systemd/random-seed etc/machine-id var/lib/dbus/machine-id
: >etc/machine-id # made at the first boot
echo localhost >etc/hostname
echo LANG=C.UTF-8 >etc/default/locale # as Debian's images: or cloud-init makes another, at length
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
printf '%s\n' '127.0.0.1 localhost' '::1 localhost ip6-localhost ip6-loopback' >etc/hosts
rm -rf var/log/*.log var/log/apt/* var/cache/debconf/*-old
HOOK
    # shellcheck disable=SC2086 # a list
    mmdebstrap --quiet --variant=minbase --architectures=amd64 --include="$(echo $GUEST_PACKAGES | tr ' ' ',')" \
        --components=main --dpkgopt='force-unsafe-io' --aptopt='Apt::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --skip=output/mknod --essential-hook="echo '$FSTAB' >\"\$1/etc/fstab\"" --customize-hook="sh $hook \"\$1\"" $SUITE "$work/root.tar" "$MIRROR" \
        "deb $MIRROR $SUITE-updates main" "deb ${MIRROR%/debian}/debian-security $SUITE-security main"
}

make_disk() {
    say "disk"
    disk_loader $ROOT_LABEL
    mkdir "$work/root"
    cat >"$work/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
linux /vmlinuz root=LABEL=$ROOT_LABEL ro $CMDLINE
initrd /initrd.img
boot
CFG
    # One fakeroot from the archive to the file system, so that owners, modes and devices are kept.
    # shellcheck disable=SC2016 # for the inner shell
    fakeroot sh -e -c 'tar -C "$1/root" --numeric-owner -xpf "$1/root.tar" && rm "$1/root.tar"
        install -D -m 644 "$1/grub.cfg" "$1/root/boot/grub/grub.cfg"
        mke2fs -q -F -t ext4 -L "$2" -O ^orphan_file -E lazy_itable_init=1 -d "$1/root" "$1/root.ext4" "$3k"' sh \
        "$work" $ROOT_LABEL "$(disk_root_kib $DISK_MIB)"
    disk_assemble "$work/disk.raw" $DISK_MIB "$work/root.ext4"
    qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/debian-12.qcow2"
    say "xz"
    xz -1 -T0 -k "$work/debian-12.qcow2"
}

build() {
    disk_check
    command -v mmdebstrap >/dev/null || die "mmdebstrap is missing; the host needs: $HOST_PACKAGES"
    command -v fakeroot >/dev/null || die "fakeroot is missing"
    work=$(mktemp -d "$cache/.build.XXXXXX")
    # shellcheck disable=SC2154
    trap 'status=$?; rm -rf "$work"; [ $status -eq 0 ] || echo "debian guest: failed" >&2' EXIT
    trap 'exit 130' INT TERM HUP
    say "packages of $SUITE from $MIRROR"
    bootstrap
    make_disk
    mv -f "$work/debian-12.qcow2.xz" "$kept.xz"
    mv -f "$work/debian-12.qcow2" "$kept"
}

# One at a time; whoever comes second finds it made.
exec 9>"$cache/.lock"
flock 9
if [ -e "$kept" ] && [ -e "$kept.xz" ]; then
    say "kept as $kept"
    touch "$kept" "$kept.xz"
else
    build
    # shellcheck disable=SC2012 # our own names
    ls -t "$cache"/debian-12-*.qcow2 | tail -n +3 | while read -r old; do rm -f "$old" "$old.xz"; done
fi
# A link where that goes: the files are never written again.
chmod 444 "$kept" "$kept.xz"
ln -f "$kept" "$out/debian-12.qcow2" 2>/dev/null || cp -f --sparse=always "$kept" "$out/debian-12.qcow2"
ln -f "$kept.xz" "$out/debian-12.qcow2.xz" 2>/dev/null || cp -f "$kept.xz" "$out/debian-12.qcow2.xz"
say "done: $(cd "$out" && du -k debian-12.qcow2 debian-12.qcow2.xz | awk '{printf "%s%s %d KiB", sep, $2, $1; sep = ", "}')"
