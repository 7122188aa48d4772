/* test_inspect.c - what vmmd-inspect says of crafted headers, and what image.c lets come to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "image/image.h"

static struct loop *loop;
static char dir[64];
static char helper[PATH_MAX + 16];
static const char *only_dirs[2];
static struct image_rules rules = {.helper = helper, .max_bytes = 16384ULL << 30};

struct answer {
    bool done;
    bool ok;
    struct image_info info;
    struct error err;
};

static void on_done(void *arg, const struct image_info *info, struct error *err)
{
    struct answer *a = arg;

    a->done = true;
    a->ok = info != NULL;
    if (info)
        a->info = *info;
    else
        error_move(&a->err, err);
}

static struct answer inspect(const char *path)
{
    struct answer a = {.done = false};

    if (!image_inspect(loop, path, &rules, on_done, &a, &a.err))
        a.done = true;
    while (!a.done)
        loop_run_once(loop, true);
    return a;
}

static void expect(const char *path, enum error_code code, const char *text)
{
    struct answer a = inspect(path);

    if (a.ok || a.err.code != code || !strstr(a.err.message, text))
        fail_msg("%s: %s, wanted %s: %s", path, a.ok ? a.info.format : a.err.message, error_info(code)->code, text);
    error_done(&a.err);
}

static void expect_format(const char *path, const char *format, uint64_t size)
{
    struct answer a = inspect(path);

    if (!a.ok)
        fail_msg("%s: %s", path, a.err.message);
    assert_string_equal(a.info.format, format);
    assert_int_equal(a.info.virtual_size, size);
}

static const char *write_image(const void *bytes, size_t len)
{
    static char path[96];
    struct error err = ERROR_INIT;

    snprintf(path, sizeof(path), "%s/image", dir);
    assert_int_equal(file_write(path, bytes, len, 0644, &err), 0);
    return path;
}

/* ---- qcow2: a sound header, and one field at a time made bad ---- */

enum { IMAGE_LEN = 4 * 65536 };

static uint8_t image[IMAGE_LEN];

static void be32(size_t at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        image[at + (size_t)i] = (uint8_t)(v >> (24 - 8 * i));
}

static void be64(size_t at, uint64_t v)
{
    be32(at, (uint32_t)(v >> 32));
    be32(at + 4, (uint32_t)v);
}

static void sound(uint32_t version)
{
    memset(image, 0, sizeof(image));
    memcpy(image, "QFI\xfb", 4);
    be32(4, version);
    be32(20, 16);         /* cluster bits */
    be64(24, 1ULL << 30); /* virtual size */
    be32(36, 2);          /* L1 entries */
    be64(40, 3 * 65536);  /* L1 table */
    be64(48, 65536);      /* reference table */
    be32(56, 1);          /* its clusters */
    if (version == 3) {
        be32(96, 4);    /* reference count order */
        be32(100, 104); /* header length */
    }
}

struct bad {
    size_t at;
    int width;
    uint64_t value;
    const char *text;
};

static const struct bad bad_v3[] = {
    {4, 4, 1, "version is 1"},
    {4, 4, 4, "neither 2 nor 3"},
    {4, 4, UINT32_MAX, "neither 2 nor 3"},
    {8, 8, 512, "names a backing file"},
    {16, 4, 12, "names a backing file"},
    {20, 4, 8, "clusters"},
    {20, 4, 22, "clusters"},
    {20, 4, UINT32_MAX, "clusters"},
    {24, 8, 0, "virtual size is impossible"},
    {24, 8, UINT64_MAX, "virtual size is impossible"},
    {24, 8, INT64_MAX, "tables do not fit"},
    {24, 8, 1ULL << 40, "tables do not fit"},
    {32, 4, 1, "encrypted"},
    {32, 4, 2, "encrypted"},
    {36, 4, 1, "tables do not fit"},
    {36, 4, UINT32_MAX, "tables do not fit"},
    {40, 8, 3 * 65536 + 8, "outside"},
    {40, 8, 1ULL << 50, "outside"},
    {48, 8, 1ULL << 50, "outside"},
    {56, 4, 0, "reference table"},
    {56, 4, UINT32_MAX, "reference table"},
    {60, 4, 65537, "snapshots"},
    {72, 8, 1 << 1, "corrupt"},
    {72, 8, 1 << 2, "external file"},
    {72, 8, 1 << 5, "unknown incompatible"},
    {72, 8, 1ULL << 63, "unknown incompatible"},
    {96, 4, 7, "reference counts"},
    {100, 4, 0, "impossible length"},
    {100, 4, 105, "impossible length"},
    {100, 4, UINT32_MAX, "impossible length"},
    {104, 4, 0xE2792ACA, "backing format"},
    {104, 4, 0x44415441, "external data file"},
};

static void put(const struct bad *b)
{
    if (b->width == 8)
        be64(b->at, b->value);
    else
        be32(b->at, (uint32_t)b->value);
}

static void test_qcow2(void **state)
{
    (void)state;
    sound(3);
    expect_format(write_image(image, IMAGE_LEN), "qcow2", 1ULL << 30);
    sound(2);
    expect_format(write_image(image, IMAGE_LEN), "qcow2", 1ULL << 30);
    for (size_t i = 0; i < ARRAY_SIZE(bad_v3); i++) {
        sound(3);
        put(&bad_v3[i]);
        expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, bad_v3[i].text);
        if (bad_v3[i].at >= 72)
            continue;
        sound(2);
        put(&bad_v3[i]);
        expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, bad_v3[i].text);
    }
}

static void test_qcow2_details(void **state)
{
    (void)state;
    sound(3);
    expect(write_image(image, 71), ERR_IMAGE_UNSAFE, "cut off");
    expect(write_image(image, 8), ERR_IMAGE_UNSAFE, "cut off");
    /* Extensions: a harmless one first; one that does not fit; a data file behind a harmless one. */
    be32(104, 0x6803f857);
    be32(108, 144);
    expect_format(write_image(image, IMAGE_LEN), "qcow2", 1ULL << 30);
    be32(112 + 144, 0x44415441);
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, "external data file");
    be32(108, UINT32_MAX);
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, "does not fit");
    /* Compression: its type must be there and known. */
    sound(3);
    be64(72, 1 << 3);
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, "compressed");
    be32(100, 112);
    image[104] = 1;
    expect_format(write_image(image, IMAGE_LEN), "qcow2", 1ULL << 30);
    image[104] = 2;
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, "compressed");
    /* Larger than allowed. */
    sound(3);
    be64(24, 20000ULL << 30);
    be32(36, 40000);
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_UNSAFE, "too large");
}

/* ---- raw ---- */

static void test_raw(void **state)
{
    static const struct {
        size_t at;
        const char *magic;
        size_t len;
    } systems[] = {
        {1080, "\x53\xef", 2}, {0, "XFSB", 4}, {65600, "_BHRfS_M", 8}, {32769, "CD001", 5}, {512, "EFI PART", 8},
    };

    (void)state;
    memset(image, 0, sizeof(image));
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_FORMAT_DETECTION_FAILED, "no partition table");
    expect(write_image(image, 0), ERR_IMAGE_FORMAT_DETECTION_FAILED, "empty");
    for (size_t i = 0; i < ARRAY_SIZE(systems); i++) {
        memset(image, 0, sizeof(image));
        memcpy(image + systems[i].at, systems[i].magic, systems[i].len);
        expect_format(write_image(image, IMAGE_LEN), "raw", IMAGE_LEN);
        expect(write_image(image, IMAGE_LEN - 1), ERR_IMAGE_FORMAT_DETECTION_FAILED, "multiple of 512");
    }
    memset(image, 0, sizeof(image));
    image[510] = 0x55;
    image[511] = 0xaa;
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_FORMAT_DETECTION_FAILED, "no partition table");
    image[446 + 4] = 0x83;
    image[446 + 12] = 8;
    expect_format(write_image(image, IMAGE_LEN), "raw", IMAGE_LEN);
    image[446] = 0x17; /* a boot sector's code, no partition table */
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_FORMAT_DETECTION_FAILED, "no partition table");
    memset(image + 446, 0, 64);
    image[0] = 0xeb;
    image[12] = 2;
    memcpy(image + 82, "FAT32", 5);
    expect_format(write_image(image, IMAGE_LEN), "raw", IMAGE_LEN);
    memset(image, 'x', sizeof(image));
    expect(write_image(image, IMAGE_LEN), ERR_IMAGE_FORMAT_DETECTION_FAILED, "no partition table");
}

static void test_foreign(void **state)
{
    static const struct {
        size_t at;
        const char *magic;
        size_t len;
        const char *name;
    } formats[] = {
        {0, "KDMV", 4, "VMDK"},
        {0, "COWD", 4, "VMDK"},
        {0, "# Disk DescriptorFile", 21, "VMDK"},
        {7, "# Disk DescriptorFile", 21, "VMDK"},
        {64, "\x7f\x10\xda\xbe", 4, "VDI"},
        {0, "vhdxfile", 8, "VHDX"},
        {0, "conectix", 8, "VPC"},
        {IMAGE_LEN - 512, "conectix", 8, "VPC"},
        {IMAGE_LEN - 512, "koly", 4, "DMG"},
        {0, "QED\0", 4, "QED"},
        {0, "LUKS\xba\xbe", 6, "LUKS"},
        {0, "WithoutFreeSpace", 16, "Parallels"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        memset(image, 0, sizeof(image));
        image[1080] = 0x53; /* a file system too: the format wins */
        image[1081] = 0xef;
        memcpy(image + formats[i].at, formats[i].magic, formats[i].len);
        expect(write_image(image, IMAGE_LEN), ERR_IMAGE_FORMAT_DETECTION_FAILED, formats[i].name);
    }
}

/* ---- the path ---- */

static void test_paths(void **state)
{
    char path[128], link[128];
    const char *good;

    (void)state;
    sound(3);
    good = write_image(image, IMAGE_LEN);
    expect("relative", ERR_IMAGE_NOT_FOUND, "absolute");
    expect("/nonexistent/dir/image", ERR_IMAGE_NOT_FOUND, "there is no image");
    snprintf(path, sizeof(path), "%s/none", dir);
    expect(path, ERR_IMAGE_NOT_FOUND, "there is no image");
    snprintf(path, sizeof(path), "%s/image/below", dir);
    expect(path, ERR_IMAGE_NOT_FOUND, "there is no image");
    expect(dir, ERR_IMAGE_UNSAFE, "not a regular file");
    snprintf(path, sizeof(path), "%s/", dir);
    expect(path, ERR_IMAGE_UNSAFE, "not a regular file");
    expect("/dev/zero", ERR_IMAGE_UNSAFE, "not a regular file");
    snprintf(path, sizeof(path), "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect(path, ERR_IMAGE_UNSAFE, "not a regular file");
    snprintf(link, sizeof(link), "%s/link", dir);
    assert_int_equal(symlink(good, link), 0);
    expect(link, ERR_IMAGE_UNSAFE, "symbolic link");
    if (geteuid() != 0) {
        assert_int_equal(chmod(good, 0), 0);
        expect(good, ERR_IO, "cannot open");
        assert_int_equal(chmod(good, 0644), 0);
    }
}

static void test_image_dirs(void **state)
{
    char inside[128], beside[128], path[160], link[160];
    const char *good;

    (void)state;
    sound(3);
    snprintf(inside, sizeof(inside), "%s/images", dir);
    snprintf(beside, sizeof(beside), "%s/images-not", dir);
    assert_int_equal(mkdir(inside, 0700) | mkdir(beside, 0700), 0);
    only_dirs[0] = inside;
    rules.image_dirs = only_dirs;
    good = write_image(image, IMAGE_LEN);
    expect(good, ERR_IMAGE_UNSAFE, "outside");
    snprintf(path, sizeof(path), "%s/../image", inside);
    expect(path, ERR_IMAGE_UNSAFE, "outside");
    snprintf(path, sizeof(path), "%s/image", beside);
    assert_int_equal(rename(good, path), 0);
    expect(path, ERR_IMAGE_UNSAFE, "outside");
    snprintf(link, sizeof(link), "%s/way-out", inside); /* a link in the directories is followed before the check */
    assert_int_equal(symlink(beside, link), 0);
    snprintf(link, sizeof(link), "%s/way-out/image", inside);
    expect(link, ERR_IMAGE_UNSAFE, "outside");
    snprintf(link, sizeof(link), "%s/image", inside);
    assert_int_equal(rename(path, link), 0);
    expect_format(link, "qcow2", 1ULL << 30);
    rules.image_dirs = NULL;
}

static void test_helper_fails(void **state)
{
    struct answer a = {.done = false};
    const char *good;
    char saved[sizeof(helper)];

    (void)state;
    sound(3);
    good = write_image(image, IMAGE_LEN);
    memcpy(saved, helper, sizeof(saved));
    snprintf(helper, sizeof(helper), "/nonexistent/vmmd-inspect");
    expect(good, ERR_IO, "");
    snprintf(helper, sizeof(helper), "/bin/false");
    expect(good, ERR_IO, "the reader of image");
    snprintf(helper, sizeof(helper), "/bin/true");
    expect(good, ERR_IO, "no answer");
    memcpy(helper, saved, sizeof(saved));
    /* Let go in the middle: no answer, no leak. */
    image_inspection_free(image_inspect(loop, good, &rules, on_done, &a, &a.err));
    for (int i = 0; i < 20; i++)
        loop_run_once(loop, false);
    assert_false(a.done);
}

static int setup(void **state)
{
    struct error err = ERROR_INIT;
    char build[PATH_MAX];

    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/vmmd-inspect-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_non_null(realpath(getenv("VMMD_BUILD") ? getenv("VMMD_BUILD") : "build", build));
    snprintf(helper, sizeof(helper), "%s/vmmd-inspect", build);
    loop = loop_new(&err);
    assert_non_null(loop);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(loop_free(loop), 0);
    return dir_remove(dir, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qcow2),        cmocka_unit_test(test_qcow2_details), cmocka_unit_test(test_raw),
        cmocka_unit_test(test_foreign),      cmocka_unit_test(test_paths),         cmocka_unit_test(test_image_dirs),
        cmocka_unit_test(test_helper_fails),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
