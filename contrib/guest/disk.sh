# shellcheck shell=bash
# Sourced by build.sh and debian.sh: from a directory tree to a disk that GRUB boots from BIOS or UEFI. No root, no loop
# devices, no mounts. The caller sets `work` (a directory of its own) and STAMP, and has say and die.

# shellcheck disable=SC2034 # for the caller
DISK_PACKAGES="e2fsprogs mtools dosfstools fdisk grub-common grub-pc-bin grub-efi-amd64-bin qemu-utils fakeroot"
DISK_TOOLS="mke2fs mformat mcopy sfdisk grub-mkimage qemu-img"

# In sectors of 512: room for GRUB's core image, the EFI system partition, the root partition to the disk's end.
DISK_BIOS=2048 DISK_BIOS_LEN=2048 DISK_ESP=4096 DISK_ESP_LEN=8192 DISK_ROOT=12288
DISK_IDS=5B1D3E0A-33B2-4F5C-8A54-0E5B1C1C7D0 # and one digit more

disk_check() {
    local tool
    for tool in $DISK_TOOLS; do
        command -v "$tool" >/dev/null || die "$tool is missing; the host needs: $HOST_PACKAGES"
    done
    [ -e /usr/lib/grub/i386-pc/boot.img ] || die "grub-pc-bin is missing"
    [ -e /usr/lib/grub/x86_64-efi/moddep.lst ] || die "grub-efi-amd64-bin is missing"
}

# A number as N little-endian bytes, for printf.
bytes() {
    local value=$1 n=$2 i
    for ((i = 0; i < n; i++)); do
        printf '\\x%02x' $((value >> (8 * i) & 255))
    done
}

# Writes those bytes into a file at an offset.
# shellcheck disable=SC2059 # escapes are what it is made of
poke() { printf "$(bytes "$3" "$4")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# What grub-install would do, without a device: boot.img into the MBR (its partition table stays), core.img into the
# bios_boot partition, both told where that is; and the EFI program into the ESP. They read /boot/grub/grub.cfg of the
# file system with this label.
# shellcheck disable=SC2154 # the caller's
disk_loader() { # label
    local dir=$work/grub
    mkdir -p "$dir"
    cat >"$dir/early.cfg" <<CFG
search --no-floppy --label $1 --set=root
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg
CFG
    local modules="part_gpt ext2 search search_label configfile normal linux echo serial terminal"
    # shellcheck disable=SC2086 # a list
    {
        grub-mkimage -O i386-pc -d /usr/lib/grub/i386-pc -p /boot/grub -c "$dir/early.cfg" -o "$dir/core.img" biosdisk $modules
        grub-mkimage -O x86_64-efi -d /usr/lib/grub/x86_64-efi -p /boot/grub -c "$dir/early.cfg" -o "$dir/BOOTX64.EFI" $modules fat efi_gop
    }
    # core.img's first sector lists the rest of itself (start at 500, counted from the disk's start).
    poke "$dir/core.img" 500 $((DISK_BIOS + 1)) 8
    cp /usr/lib/grub/i386-pc/boot.img "$dir/boot.img"
    poke "$dir/boot.img" $((0x5c)) "$DISK_BIOS" 8 # where core.img starts
    poke "$dir/boot.img" $((0x66)) $((0x9090)) 2    # no floppy check
    [ "$(stat -c %s "$dir/core.img")" -le $((DISK_BIOS_LEN * 512)) ] || die "GRUB's core image is too large"
}

# How many KiB the root file system of a disk of this size has.
disk_root_kib() { echo $((($1 * 2048 - DISK_ROOT - 2048) / 2)); } # MiB

# The disk, raw and sparse, from the root file system's image and what disk_loader made.
disk_assemble() { # raw, MiB, root file system
    local raw=$1 dir=$work/grub root_len=$(($2 * 2048 - DISK_ROOT - 2048))
    truncate -s $((DISK_ESP_LEN * 512)) "$work/esp.fat"
    mformat -i "$work/esp.fat" -v VMMDGUEST -N 20231114 -T $DISK_ESP_LEN -h 2 -s 32 ::
    mmd -i "$work/esp.fat" ::/EFI ::/EFI/BOOT
    touch -d "@$STAMP" "$dir/BOOTX64.EFI"
    mcopy -m -i "$work/esp.fat" "$dir/BOOTX64.EFI" ::/EFI/BOOT/
    truncate -s "$2M" "$raw"
    sfdisk -q "$raw" <<TABLE
label: gpt
label-id: ${DISK_IDS}1
start=$DISK_BIOS, size=$DISK_BIOS_LEN, type=21686148-6449-6E6F-744E-656564454649, uuid=${DISK_IDS}2, name=bios
start=$DISK_ESP, size=$DISK_ESP_LEN, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=${DISK_IDS}3, name=esp
start=$DISK_ROOT, size=$root_len, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=${DISK_IDS}4, name=root
TABLE
    dd if="$dir/boot.img" of="$raw" bs=1 count=440 conv=notrunc status=none
    dd if="$dir/core.img" of="$raw" bs=512 seek=$DISK_BIOS conv=notrunc status=none
    dd if="$work/esp.fat" of="$raw" bs=512 seek=$DISK_ESP conv=notrunc,sparse status=none
    dd if="$3" of="$raw" bs=1M seek=$((DISK_ROOT / 2048)) conv=notrunc,sparse status=none
}
