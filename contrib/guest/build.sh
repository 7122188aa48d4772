#!/bin/bash
# Builds the test and demo guest: OUTDIR/vmlinuz and initrd.img (direct boot, q35 and microvm) and OUTDIR/tiny.qcow2
# (the same guest on a disk, booted by GRUB from BIOS or UEFI).
#
#     contrib/guest/build.sh build/guest
#
# Everything inside comes from Debian's packages, downloaded with apt-get as they are today and only unpacked. No root,
# no loop devices, no mounts: file systems are made from directories. What is finished replaces the old files at the
# end in one step each; a failure leaves the old ones as they were.
set -euo pipefail
export LC_ALL=C
umask 022

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=contrib/guest/disk.sh
. "$here/disk.sh"

# What the host must have (Debian package names); `build.sh --packages` prints it.
HOST_PACKAGES="cpio zstd kmod $DISK_PACKAGES"

# What the guest is made of, beside the kernel. Libraries are checked for completeness below.
GUEST_PACKAGES="busybox-static dropbear-bin openssh-sftp-server qemu-guest-agent
    libc6 libcrypt1 libglib2.0-0 libgmp10 libnuma1 libpcre2-8-0 libtomcrypt1 libtommath1 libudev1 liburing2 zlib1g"
MODULES="virtio_pci virtio_mmio virtio-rng virtio_blk virtio_net virtio_scsi virtio_console sr_mod isofs
    vfat nls_cp437 nls_ascii pvpanic-pci pvpanic-mmio evdev button"
PROGRAMS="usr/sbin/dropbear usr/bin/dropbearkey usr/lib/openssh/sftp-server usr/sbin/qemu-ga"

DISK_MIB=512      # virtual size of tiny.qcow2
ROOT_LABEL=vmmd-root
STAMP=1700000000  # every file's time, so that two builds differ only where Debian's packages do
export SOURCE_DATE_EPOCH=$STAMP # mtools

if [ "${1:-}" = --packages ]; then
    echo "$HOST_PACKAGES"
    exit 0
fi
[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR | --packages" >&2; exit 2; }

mkdir -p "$1"
out=$(cd "$1" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d "$out/.build.XXXXXX")
# shellcheck disable=SC2154
trap 'status=$?; rm -rf "$work"; [ $status -eq 0 ] || echo "guest: failed" >&2' EXIT
trap 'exit 130' INT TERM HUP

say() { echo "guest: $*"; }
die() { echo "guest: $*" >&2; exit 1; }

for tool in apt-get dpkg-deb cpio zstd depmod modprobe; do
    command -v $tool >/dev/null || die "$tool is missing; the host needs: $HOST_PACKAGES"
done
disk_check
# Files in the images belong to root whoever builds.
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v fakeroot >/dev/null || die "fakeroot is missing"
    as_root=fakeroot
fi

kernel_package() {
    apt-cache show --no-all-versions linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p'
}

download() {
    local kernel
    kernel=$(kernel_package)
    [ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64: run apt-get update first"
    # shellcheck disable=SC2086 # a list
    say "download $kernel and $(echo $GUEST_PACKAGES | wc -w) packages"
    mkdir "$work/debs" "$work/unpacked"
    # shellcheck disable=SC2086 # a list
    (cd "$work/debs" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$kernel" $GUEST_PACKAGES)
    say "unpack"
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$work/unpacked"
    done
}

# Copies what the named programs load into the tree, by asking the unpacked loader: a library that is not in the
# unpacked packages would come from the host, and is an error.
copy_programs() {
    local pkg=$work/unpacked program lib dirs
    dirs=$pkg/lib/x86_64-linux-gnu:$pkg/usr/lib/x86_64-linux-gnu
    for program in $PROGRAMS; do
        install -D -m 755 "$pkg/$program" "$tree/$program"
        "$pkg/lib64/ld-linux-x86-64.so.2" --library-path "$dirs" --list "$pkg/$program" >"$work/libs"
        for lib in $(sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' "$work/libs"); do
            case $lib in
            "$pkg"/*) install -D -m 755 "$lib" "$tree/lib/x86_64-linux-gnu/${lib##*/}" ;;
            */ld-linux-x86-64.so.2) ;;
            *) die "$program needs $lib, which is in none of GUEST_PACKAGES" ;;
            esac
        done
        ! grep -q 'not found' "$work/libs" || die "$program: $(grep 'not found' "$work/libs")"
    done
    install -D -m 755 "$pkg/lib64/ld-linux-x86-64.so.2" "$tree/lib64/ld-linux-x86-64.so.2"
    # Where dropbear looks for it.
    ln -s openssh/sftp-server "$tree/usr/lib/sftp-server"
}

copy_modules() {
    local pkg=$work/unpacked module file
    release=$(cd "$pkg/lib/modules" && echo *)
    depmod -b "$pkg" "$release"
    for module in $MODULES; do
        modprobe -d "$pkg" -S "$release" --show-depends "$module" >"$work/deps" || die "no module $module"
        for file in $(sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/deps"); do
            install -D -m 644 "$file" "$tree/${file#"$pkg"/}"
        done
    done
    cp "$pkg/lib/modules/$release/modules.builtin" "$pkg/lib/modules/$release/modules.builtin.modinfo" \
        "$pkg/lib/modules/$release/modules.order" "$tree/lib/modules/$release/"
    depmod -b "$tree" "$release"
    (cd "$tree/lib/modules/$release" && find . -maxdepth 1 -name 'modules.*' ! -name modules.dep ! -name modules.alias -delete)
}

make_tree() {
    say "root tree"
    tree=$work/tree
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,lib,lib64,etc,dev,proc,sys,run,mnt,root,home,var/{lib,log},boot}
    mkdir -m 1777 "$tree/tmp"
    ln -s /run "$tree/var/run"
    install -m 755 "$work/unpacked/bin/busybox" "$tree/bin/busybox"
    cp -R "$here/rootfs/." "$tree/"
    local applet
    for applet in $("$tree/bin/busybox" --list); do
        case $applet in dpkg | dpkg-deb | rpm | rpm2cpio | busybox | shutdown) continue ;; esac
        [ -e "$tree/bin/$applet" ] || [ -e "$tree/sbin/$applet" ] || ln -s busybox "$tree/bin/$applet"
    done
    # One script is every way down; see rootfs/sbin/shutdown.
    for applet in poweroff reboot halt; do
        rm -f "$tree/bin/$applet"
        ln -s shutdown "$tree/sbin/$applet"
    done
    ln -s ../bin/busybox "$tree/sbin/init"
    ln -s ../bin/busybox "$tree/sbin/modprobe" # where the kernel calls it
    chmod 755 "$tree/init" "$tree/sbin/shutdown" "$tree/etc/acpi/PWRF/00000080" "$tree"/usr/lib/vmmd-guest/{rc,seed,dhcp,commands}
    chmod 600 "$tree/etc/shadow"
    chmod 700 "$tree/root"
    copy_programs
    copy_modules
    find "$tree" -exec touch -h -d "@$STAMP" {} +
}

make_direct() {
    say "vmlinuz $release, initrd.img"
    cp "$work/unpacked/boot/vmlinuz-$release" "$work/vmlinuz"
    (cd "$tree" && find . -print0 | sort -z | cpio --null --create --format newc --owner 0:0 --reproducible --quiet) |
        zstd -q -19 >"$work/initrd.img"
}

make_disk() {
    local raw=$work/disk.raw root=$work/root
    say "tiny.qcow2: boot loader"
    disk_loader $ROOT_LABEL

    say "tiny.qcow2: file systems"
    cp -a "$tree" "$root"
    cp "$work/vmlinuz" "$work/initrd.img" "$root/boot/"
    mkdir -p "$root/boot/grub"
    cat >"$root/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set gfxpayload=keep
linux /boot/vmlinuz root=LABEL=$ROOT_LABEL console=tty0 console=ttyS0 quiet
initrd /boot/initrd.img
boot
CFG
    find "$root/boot" -exec touch -h -d "@$STAMP" {} +
    # shellcheck disable=SC2016 # for the inner shell
    E2FSPROGS_FAKE_TIME=$STAMP $as_root sh -c 'chown -R 0:0 "$1" && mke2fs -q -F -t ext4 -m 0 -L "$2" -U "$3" \
        -O ^metadata_csum_seed,^orphan_file -E "hash_seed=$3,lazy_itable_init=1" -d "$1" "$4" "$5" >/dev/null' sh \
        "$root" $ROOT_LABEL 7f0a5c1e-5d52-4a8e-9d3e-0d7f6f3c2b10 "$work/root.ext4" "$(disk_root_kib $DISK_MIB)k"
    # mke2fs takes over access and change times, which nothing else can set.
    (cd "$root" && find . -printf 'sif /%P atime @'$STAMP'\nsif /%P ctime @'$STAMP'\n') >"$work/times"
    E2FSPROGS_FAKE_TIME=$STAMP debugfs -w -f "$work/times" "$work/root.ext4" >/dev/null 2>"$work/log" ||
        die "debugfs: $(cat "$work/log")"
    say "tiny.qcow2: disk"
    disk_assemble "$raw" $DISK_MIB "$work/root.ext4"
    qemu-img convert -q -f raw -O qcow2 "$raw" "$work/tiny.qcow2"
}

download
make_tree
make_direct
make_disk
for file in vmlinuz initrd.img tiny.qcow2; do
    mv -f "$work/$file" "$out/$file"
done
say "done: $(cd "$out" && du -k vmlinuz initrd.img tiny.qcow2 | awk '{printf "%s%s %d KiB", sep, $2, $1; sep = ", "}')"
