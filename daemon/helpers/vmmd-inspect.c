/* vmmd-inspect - reads the header of a disk image (fd 3) and says what it is: one JSON line on stdout.
 *
 *   {"format":"qcow2","virtual_size":1073741824}
 *   {"error":"unsafe","detail":"it names a backing file"}        error: unsafe, unknown, foreign, io
 *
 * Happy path: drop every privilege, read a few blocks by pread, decide from the bytes alone, print, exit 0.  Nothing is
 * opened, followed or executed: an image that names another file (backing file, data file, extent) is refused, for QEMU
 * would go where the name points.  Failures are printed the same way, and exit 0 as well: a parser that was killed (a bad
 * system call, CPU time) is told from one that answered by its exit status.  `vmmd-inspect raw` takes any regular file
 * whose size is a multiple of 512 and that is no other format as raw: the user has said so.  `vmmd-inspect import` also
 * names the formats that are taken after a conversion (vmdk, vdi, vhdx, vpc), with the size that their header tells (0:
 * it is not told there). */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helpers/cage/cage.h"

#ifndef SANITIZED
#include <seccomp.h>
#endif

enum { IMAGE_FD = 3, BLOCK = 512, HEAD_MAX = 69632 /* up to btrfs' super block and its first bytes */ };

static int answer_error(const char *kind, const char *detail)
{
    return printf("{\"error\":\"%s\",\"detail\":\"%s\"}\n", kind, detail) < 0;
}

static int answer_format(const char *format, uint64_t virtual_size)
{
    return printf("{\"format\":\"%s\",\"virtual_size\":%" PRIu64 "}\n", format, virtual_size) < 0;
}

/* What of the file has been read: its beginning, its size, and its last block. */
struct image {
    uint8_t head[HEAD_MAX];
    size_t head_len;
    uint8_t tail[BLOCK];
    size_t tail_len;
    uint64_t size;
};

static uint16_t le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t le64(const uint8_t *p)
{
    return (uint64_t)le32(p) | (uint64_t)le32(p + 4) << 32;
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[3] | (uint32_t)p[2] << 8 | (uint32_t)p[1] << 16 | (uint32_t)p[0] << 24;
}

static uint64_t be64(const uint8_t *p)
{
    return (uint64_t)be32(p) << 32 | be32(p + 4);
}

static bool has(const struct image *im, size_t offset, const void *magic, size_t len)
{
    return offset + len <= im->head_len && memcmp(im->head + offset, magic, len) == 0;
}

static ssize_t read_at(uint8_t *out, size_t want, uint64_t offset)
{
    size_t got = 0;

    while (got < want) {
        ssize_t n = pread(IMAGE_FD, out + got, want - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

static int image_read(struct image *im)
{
    struct stat st;
    ssize_t n;

    if (fstat(IMAGE_FD, &st) < 0 || !S_ISREG(st.st_mode))
        return -1;
    im->size = (uint64_t)st.st_size;
    n = read_at(im->head, sizeof(im->head), 0);
    if (n < 0)
        return -1;
    im->head_len = (size_t)n;
    if (im->size >= BLOCK) {
        n = read_at(im->tail, BLOCK, im->size - BLOCK);
        if (n < 0)
            return -1;
        im->tail_len = (size_t)n;
    }
    return 0;
}

/* qcow2: incompatible feature bits that QEMU may set in a plain image. */
#define QCOW2_DIRTY (1ULL << 0)
#define QCOW2_CORRUPT (1ULL << 1)
#define QCOW2_DATA_FILE (1ULL << 2)
#define QCOW2_COMPRESSION (1ULL << 3)
#define QCOW2_EXTENDED_L2 (1ULL << 4)

enum {
    QCOW2_BACKING_OFFSET = 8,
    QCOW2_BACKING_LEN = 16,
    QCOW2_CLUSTER_BITS = 20,
    QCOW2_SIZE = 24,
    QCOW2_CRYPT = 32,
    QCOW2_L1_SIZE = 36,
    QCOW2_L1_OFFSET = 40,
    QCOW2_REFCOUNT_OFFSET = 48,
    QCOW2_REFCOUNT_CLUSTERS = 56,
    QCOW2_SNAPSHOTS = 60,
    QCOW2_INCOMPATIBLE = 72,
    QCOW2_REFCOUNT_ORDER = 96,
    QCOW2_HEADER_LEN = 100,
    QCOW2_COMPRESSION_TYPE = 104,
    QCOW2_V2_HEADER = 72,
    QCOW2_V3_HEADER = 104,
    QCOW2_HEADER_MAX = 4096,
    QCOW2_L1_MAX = 32 * 1024 * 1024 / 8,
    QCOW2_SNAPSHOTS_MAX = 65536,
};

/* Header extensions may name a backing format or a data file too. */
static const char *qcow2_extensions(const struct image *im, size_t offset, size_t end)
{
    if (end > im->head_len)
        end = im->head_len;
    while (offset + 8 <= end) {
        uint32_t type = be32(im->head + offset);
        uint32_t len = be32(im->head + offset + 4);

        if (type == 0)
            return NULL;
        if (type == 0xE2792ACA)
            return "its header names a backing format";
        if (type == 0x44415441)
            return "its header names an external data file";
        if (len > end - offset - 8)
            return "a header extension does not fit";
        offset += 8 + ((size_t)len + 7) / 8 * 8;
    }
    return NULL;
}

static const char *qcow2_v3_check(const struct image *im, uint64_t cluster)
{
    const uint8_t *h = im->head;
    uint64_t features;
    uint32_t header_len;

    if (im->head_len < QCOW2_V3_HEADER)
        return "its header is cut off";
    features = be64(h + QCOW2_INCOMPATIBLE);
    header_len = be32(h + QCOW2_HEADER_LEN);
    if (features & QCOW2_DATA_FILE)
        return "it keeps its data in an external file";
    if (features & ~(QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_DATA_FILE | QCOW2_COMPRESSION | QCOW2_EXTENDED_L2))
        return "it has unknown incompatible features";
    if (features & QCOW2_CORRUPT)
        return "it is marked corrupt";
    if (header_len < QCOW2_V3_HEADER || header_len > QCOW2_HEADER_MAX || header_len > cluster || header_len % 8)
        return "its header has an impossible length";
    if (be32(h + QCOW2_REFCOUNT_ORDER) > 6)
        return "its reference counts have an impossible width";
    if (features & QCOW2_COMPRESSION && (header_len < QCOW2_COMPRESSION_TYPE + 8 ||
                                         im->head_len <= QCOW2_COMPRESSION_TYPE || h[QCOW2_COMPRESSION_TYPE] > 1))
        return "it is compressed in an unknown way";
    return qcow2_extensions(im, header_len, cluster < HEAD_MAX ? (size_t)cluster : HEAD_MAX);
}

/* NULL: fine. */
static const char *qcow2_check(const struct image *im)
{
    const uint8_t *h = im->head;
    uint32_t version, bits;
    uint64_t size, cluster, l1_entries;
    bool extended;

    if (im->head_len < QCOW2_V2_HEADER)
        return "its header is cut off";
    version = be32(h + 4);
    if (version != 2 && version != 3)
        return "its qcow2 version is neither 2 nor 3";
    if (be64(h + QCOW2_BACKING_OFFSET) != 0 || be32(h + QCOW2_BACKING_LEN) != 0)
        return "it names a backing file";
    bits = be32(h + QCOW2_CLUSTER_BITS);
    if (bits < 9 || bits > 21)
        return "its clusters have an impossible size";
    cluster = 1ULL << bits;
    if (be32(h + QCOW2_CRYPT) != 0)
        return "it is encrypted";
    size = be64(h + QCOW2_SIZE);
    if (size == 0 || size > INT64_MAX)
        return "its virtual size is impossible";
    extended = version == 3 && im->head_len >= QCOW2_V3_HEADER && be64(h + QCOW2_INCOMPATIBLE) & QCOW2_EXTENDED_L2;
    /* The L1 table must reach the whole disk, or QEMU refuses the image at start; and be of a size QEMU takes. */
    l1_entries = (size - 1) / cluster / (cluster / (extended ? 16 : 8)) + 1;
    if (be32(h + QCOW2_L1_SIZE) > QCOW2_L1_MAX || l1_entries > be32(h + QCOW2_L1_SIZE))
        return "its tables do not fit its virtual size";
    if (be64(h + QCOW2_L1_OFFSET) % cluster || be64(h + QCOW2_L1_OFFSET) >= im->size ||
        be64(h + QCOW2_REFCOUNT_OFFSET) % cluster || be64(h + QCOW2_REFCOUNT_OFFSET) >= im->size)
        return "its tables lie outside the file";
    if (be32(h + QCOW2_REFCOUNT_CLUSTERS) == 0 || be32(h + QCOW2_REFCOUNT_CLUSTERS) > 8 * 1024 * 1024 / cluster + 1)
        return "its reference table has an impossible size";
    if (be32(h + QCOW2_SNAPSHOTS) > QCOW2_SNAPSHOTS_MAX)
        return "it has too many snapshots";
    if (version == 3)
        return qcow2_v3_check(im, cluster);
    return qcow2_extensions(im, QCOW2_V2_HEADER, cluster < HEAD_MAX ? (size_t)cluster : HEAD_MAX);
}

static const char descriptor[] = "# Disk DescriptorFile";

/* Formats that we know and never take; their names go into the message.  NULL: none of them. */
static const char *foreign_format(const struct image *im)
{
    if (has(im, 0, "QED", 4))
        return "QED";
    if (has(im, 0, "LUKS\xba\xbe", 6))
        return "LUKS";
    if (has(im, 0, "WithoutFreeSpace", 16) || has(im, 0, "WithouFreSpacExt", 16))
        return "Parallels";
    if (has(im, 0, "Bochs Virtual HD Image", 22))
        return "Bochs";
    if (im->tail_len == BLOCK && memcmp(im->tail, "koly", 4) == 0)
        return "DMG";
    return NULL;
}

/* --- formats that are converted: what they are, and whether QEMU would follow them anywhere --- */

static bool found(const struct image *im, const char *text)
{
    return memmem(im->head, im->head_len, text, strlen(text)) != NULL;
}

enum { VMDK_CAPACITY = 12, VMDK_DESC_OFFSET = 28, VMDK_DESC_SIZE = 36 };

/* One file with its extent in it.  A descriptor alone names extents, a parent is a backing file, and a capacity of 0 makes
 * QEMU take the embedded descriptor for one that stands alone. */
static const char *vmdk_check(const struct image *im, uint64_t *size)
{
    uint64_t desc_end;

    if (!has(im, 0, "KDMV", 4))
        return "it names its extents by path";
    if (im->head_len < BLOCK)
        return "its header is cut off";
    desc_end = (le64(im->head + VMDK_DESC_OFFSET) + le64(im->head + VMDK_DESC_SIZE)) * BLOCK;
    *size = le64(im->head + VMDK_CAPACITY) * BLOCK;
    if (le64(im->head + VMDK_CAPACITY) == 0 || le64(im->head + VMDK_CAPACITY) > INT64_MAX / BLOCK)
        return "its virtual size is impossible";
    if (le64(im->head + VMDK_DESC_OFFSET) > HEAD_MAX || le64(im->head + VMDK_DESC_SIZE) > HEAD_MAX ||
        desc_end > HEAD_MAX)
        return "its descriptor lies where it is not looked for";
    if (found(im, "parentFileNameHint"))
        return "it names a parent";
    if (!found(im, "createType=\"monolithicSparse\"") && !found(im, "createType=\"streamOptimized\""))
        return "it is of a kind that may name other files";
    return NULL;
}

enum { VDI_VERSION = 68, VDI_TYPE = 76, VDI_SIZE = 368, VDI_LINK = 424 };

static const char *vdi_check(const struct image *im, uint64_t *size)
{
    static const uint8_t none[32];

    if (im->head_len < BLOCK)
        return "its header is cut off";
    if (le32(im->head + VDI_VERSION) != 0x10001 || (le32(im->head + VDI_TYPE) != 1 && le32(im->head + VDI_TYPE) != 2))
        return "its version or kind is not known";
    if (memcmp(im->head + VDI_LINK, none, sizeof(none)) != 0)
        return "it has a parent";
    *size = le64(im->head + VDI_SIZE);
    return *size == 0 || *size > INT64_MAX ? "its virtual size is impossible" : NULL;
}

enum { VPC_SIZE = 48, VPC_TYPE = 60 };

/* The footer, or its copy at the beginning. */
static const char *vpc_check(const struct image *im, uint64_t *size)
{
    const uint8_t *footer = has(im, 0, "conectix", 8) ? im->head : im->tail;
    uint32_t type = be32(footer + VPC_TYPE);

    if (im->head_len < BLOCK)
        return "its header is cut off";
    if (type != 2 && type != 3)
        return "it has a parent, or is of an unknown kind";
    *size = be64(footer + VPC_SIZE);
    return *size == 0 || *size > INT64_MAX ? "its virtual size is impossible" : NULL;
}

/* NULL: none of them. */
static const char *convertible(const struct image *im, const char **why, uint64_t *size)
{
    *why = NULL;
    *size = 0;
    if (has(im, 0, "KDMV", 4) || has(im, 0, "COWD", 4) || has(im, 0, "VMDK", 4)) {
        *why = vmdk_check(im, size);
        return "vmdk";
    }
    for (size_t i = 0; i < 1024; i++) {
        if (has(im, i, descriptor, sizeof(descriptor) - 1)) {
            *why = "it names its extents by path";
            return "vmdk";
        }
    }
    if (has(im, 64, "\x7f\x10\xda\xbe", 4)) {
        *why = vdi_check(im, size);
        return "vdi";
    }
    if (has(im, 0, "vhdxfile", 8))
        return "vhdx"; /* its size is told by qemu-img; one with a parent is refused by QEMU */
    if (has(im, 0, "conectix", 8) || (im->tail_len == BLOCK && memcmp(im->tail, "conectix", 8) == 0)) {
        *why = vpc_check(im, size);
        return "vpc";
    }
    return NULL;
}

static const char *shown(const char *format)
{
    return strcmp(format, "vmdk") == 0  ? "VMDK"
           : strcmp(format, "vdi") == 0 ? "VDI"
           : strcmp(format, "vpc") == 0 ? "VPC (VHD)"
                                        : "VHDX";
}

static bool has_mbr(const struct image *im)
{
    const uint8_t *entry = im->head + 446;
    bool any = false;

    if (!has(im, 510, "\x55\xaa", 2))
        return false;
    for (int i = 0; i < 4; i++, entry += 16) {
        if (entry[0] != 0 && entry[0] != 0x80)
            return false;
        any |= entry[4] != 0 && le32(entry + 12) != 0;
    }
    return any;
}

static bool has_vfat(const struct image *im)
{
    uint16_t sector;

    if (!has(im, 510, "\x55\xaa", 2) || (im->head[0] != 0xeb && im->head[0] != 0xe9))
        return false;
    sector = le16(im->head + 11);
    return (sector == 512 || sector == 1024 || sector == 2048 || sector == 4096) &&
           (has(im, 54, "FAT1", 4) || has(im, 82, "FAT32", 5));
}

/* A partition table or a file system that QEMU's guests boot from. */
static bool raw_known(const struct image *im)
{
    return has_mbr(im) || has_vfat(im) || has(im, 512, "EFI PART", 8) || has(im, 4096, "EFI PART", 8) ||
           has(im, 1080, "\x53\xef", 2) || has(im, 0, "XFSB", 4) || has(im, 65600, "_BHRfS_M", 8) ||
           has(im, 32769, "CD001", 5);
}

static int inspect(const struct image *im, bool said_raw, bool import)
{
    const char *why, *foreign, *other;
    uint64_t size;
    char detail[80];

    if (has(im, 0, "QFI\xfb", 4)) {
        if (im->head_len >= 8 && be32(im->head + 4) == 1)
            return answer_error("unsafe", "its qcow version is 1, not 2 or 3");
        why = qcow2_check(im);
        return why ? answer_error("unsafe", why) : answer_format("qcow2", be64(im->head + QCOW2_SIZE));
    }
    other = convertible(im, &why, &size);
    if (import && other)
        return why ? answer_error("unsafe", why) : answer_format(other, size);
    foreign = other ? shown(other) : foreign_format(im);
    if (foreign) {
        snprintf(detail, sizeof(detail), "it is a %s image%s", foreign, other ? "" : ", which is not supported");
        return answer_error("foreign", detail);
    }
    if (im->size == 0)
        return answer_error("unknown", "it is empty");
    if (im->size % BLOCK)
        return answer_error("unknown", "it is not qcow2, and its size is not a multiple of 512");
    if (!said_raw && !raw_known(im))
        return answer_error("unknown", "it is not qcow2, and has no partition table or file system known here");
    return answer_format("raw", im->size);
}

/* From here on: read fd 3, write fd 1 and 2, end. */
static int confine(void)
{
    const struct cage_limits limits = {.cpu_s = 5, .file_bytes = 4096, .files = 4};

    if (cage_drop(&limits) < 0)
        return -1;
#ifndef SANITIZED
    const int allowed[] = {SCMP_SYS(pread64), SCMP_SYS(write),       SCMP_SYS(fstat), SCMP_SYS(newfstatat),
                           SCMP_SYS(brk),     SCMP_SYS(exit_group),  SCMP_SYS(mmap),  SCMP_SYS(munmap),
                           SCMP_SYS(exit),    SCMP_SYS(rt_sigreturn)};
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int rc = ctx ? 0 : -1;

    for (size_t i = 0; rc == 0 && i < sizeof(allowed) / sizeof(allowed[0]); i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    if (rc)
        return -1;
#endif
    return 0;
}

int main(int argc, char **argv)
{
    static struct image im;
    bool said_raw = argc == 2 && strcmp(argv[1], "raw") == 0, import = argc == 2 && strcmp(argv[1], "import") == 0;

    if (argc > 2 || (argc == 2 && !said_raw && !import)) {
        fprintf(stderr, "usage: vmmd-inspect [raw | import] 3<IMAGE\n");
        return 2;
    }
    if (confine() < 0) {
        fprintf(stderr, "vmmd-inspect: cannot confine itself: %s\n", strerror(errno));
        return 1;
    }
    if (image_read(&im) < 0)
        return answer_error("io", "it cannot be read");
    return inspect(&im, said_raw, import) || fflush(stdout);
}
