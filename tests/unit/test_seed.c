/* test_seed.c - cloud-init seeds: written, and read back by libarchive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/mem.h"
#include "cloudinit/seed.h"

static char dir[64];
static char path[96];

/* The content of a file of the image; NULL: it has none of that name.  The caller frees. */
static char *read_back(const char *name)
{
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    char *text = NULL;

    archive_read_support_format_iso9660(a);
    assert_int_equal(archive_read_open_filename(a, path, 4096), ARCHIVE_OK);
    while (!text && archive_read_next_header(a, &entry) == ARCHIVE_OK) {
        if (strcmp(archive_entry_pathname(entry), name) != 0)
            continue;
        size_t len = (size_t)archive_entry_size(entry);

        text = calloc(1, len + 1);
        assert_int_equal(archive_read_data(a, text, len), len);
    }
    archive_read_free(a);
    return text;
}

static void expect_text(const char *name, const char *want)
{
    char *got = read_back(name);

    assert_non_null(got);
    assert_string_equal(got, want);
    free(got);
}

static json_t *expect_json(const char *name, const char *heading)
{
    char *got = read_back(name);
    json_t *doc;

    assert_non_null(got);
    assert_int_equal(strncmp(got, heading, strlen(heading)), 0);
    doc = json_loads(got + strlen(heading), JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(doc);
    free(got);
    return doc;
}

static void write_seed(const struct seed_input *in)
{
    struct error err = ERROR_INIT;
    struct seed seed;

    unlink(path);
    if (seed_build(in, &seed, &err) < 0 || seed_write(&seed, path, &err) < 0)
        fail_msg("%s", err.message);
    seed_done(&seed);
}

static void test_made_up(void **state)
{
    const char *const keys[] = {"ssh-ed25519 AAAA one", "ssh-rsa BBBB \"two\"\n- evil"};
    struct seed_input in = {
        .instance_id = "id-1", .hostname = "web\nruncmd: [evil]", .user = "vm", .ssh_keys = keys, .n_ssh_keys = 2};
    json_t *doc, *user;

    (void)state;
    write_seed(&in);
    doc = expect_json("meta-data", "");
    assert_string_equal(json_string_value(json_object_get(doc, "instance-id")), "id-1");
    assert_string_equal(json_string_value(json_object_get(doc, "local-hostname")), in.hostname);
    assert_int_equal(json_object_size(doc), 2);
    json_decref(doc);
    doc = expect_json("user-data", "#cloud-config\n");
    assert_null(json_object_get(doc, "runcmd"));
    assert_string_equal(json_string_value(json_object_get(doc, "hostname")), in.hostname);
    user = json_array_get(json_object_get(doc, "users"), 0);
    assert_string_equal(json_string_value(json_object_get(user, "name")), "vm");
    assert_string_equal(json_string_value(json_object_get(user, "sudo")), "ALL=(ALL) NOPASSWD:ALL");
    assert_int_equal(json_array_size(json_object_get(user, "ssh_authorized_keys")), 2);
    assert_string_equal(json_string_value(json_array_get(json_object_get(user, "ssh_authorized_keys"), 1)), keys[1]);
    json_decref(doc);
    assert_null(read_back("vendor-data"));
    assert_null(read_back("network-config"));
}

static void test_given(void **state)
{
    struct seed_input in = {.instance_id = "id-2",
                            .user_data = "#!/bin/sh\necho \xc3\xa9\n",
                            .vendor_data = "#cloud-config\n{}\n",
                            .network_config = "version: 2\n"};
    json_t *doc;

    (void)state;
    write_seed(&in);
    expect_text("user-data", in.user_data);
    expect_text("vendor-data", in.vendor_data);
    expect_text("network-config", in.network_config);
    doc = expect_json("meta-data", "");
    assert_int_equal(json_object_size(doc), 1);
    json_decref(doc);
    in.user_data = "";
    write_seed(&in);
    expect_text("user-data", "");
}

/* The volume's name is what the guest looks for: in the primary and in the Joliet descriptor. */
static void test_volume(void **state)
{
    struct seed_input in = {.instance_id = "id", .user = "vm"};
    unsigned char sectors[2 * 2048];
    int fd;

    (void)state;
    write_seed(&in);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, sectors, sizeof(sectors), 16 * 2048), sizeof(sectors));
    close(fd);
    assert_memory_equal(sectors,
                        "\x01"
                        "CD001",
                        6);
    assert_memory_equal(sectors + 40, "CIDATA    ", 10);
    assert_memory_equal(sectors + 2048,
                        "\x02"
                        "CD001",
                        6);
    assert_memory_equal(sectors + 2048 + 40, "\0C\0I\0D\0A\0T\0A", 12);
}

static void test_failures(void **state)
{
    struct seed_input in = {.instance_id = "id", .user = "vm", .hostname = "\xff"};
    struct rlimit old, small = {4096, RLIM_INFINITY};
    struct error err = ERROR_INIT;
    struct seed seed;

    (void)state;
    assert_int_equal(seed_build(&in, &seed, &err), -1);
    assert_int_equal(err.code, ERR_CLOUDINIT_ISO_FAILED);
    error_done(&err);

    in.hostname = "web";
    write_seed(&in);
    assert_int_equal(seed_build(&in, &seed, &err), 0);
    assert_int_equal(seed_write(&seed, path, &err), -1); /* it exists: never overwritten */
    assert_int_equal(err.code, ERR_CLOUDINIT_ISO_FAILED);
    error_done(&err);

    unlink(path);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(seed_write(&seed, path, &err), -1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(err.code, ERR_CLOUDINIT_ISO_FAILED);
    assert_int_equal(access(path, F_OK), -1);
    error_done(&err);
    seed_done(&seed);
}

static void test_no_memory(void **state)
{
    const char *const keys[] = {"ssh-ed25519 AAAA"};
    struct seed_input in = {.instance_id = "id",
                            .user = "vm",
                            .ssh_keys = keys,
                            .n_ssh_keys = 1,
                            .vendor_data = "v",
                            .network_config = "n"};

    (void)state;
    for (size_t nth = 1;; nth++) {
        struct error err = ERROR_INIT;
        struct seed seed;

        mem_fail_nth(nth);
        int rc = seed_build(&in, &seed, &err);
        size_t made = mem_fail_nth(0);

        error_done(&err);
        if (rc == 0)
            seed_done(&seed);
        if (made < nth) {
            assert_int_equal(rc, 0);
            assert_true(nth > 3);
            return;
        }
        assert_int_equal(rc, -1);
    }
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/vmmd-seed-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/seed.iso", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return dir_remove(dir, NULL);
}

static void user_data_that_cloud_init_knows_is_told_apart(void **state)
{
    static const char *const known[] = {"",
                                        "#cloud-config\nusers: []\n",
                                        "\n  #Cloud-Config\n",
                                        "#cloud-config-archive\n",
                                        "#!/bin/sh\n",
                                        "#include\nhttp://192.0.2.1/x\n",
                                        "#include-once\n",
                                        "#cloud-boothook\n",
                                        "#part-handler\n",
                                        "## template: jinja\n#cloud-config\n",
                                        "Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n",
                                        "From x\nMime-version: 1.0\n"};
    static const char *const unknown[] = {"users: []\n", "# cloud-config\n", "{\"users\":[]}", "cloud-config",
                                          "echo hi\n"};

    (void)state;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        assert_true(seed_user_data_known(known[i]));
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_false(seed_user_data_known(unknown[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(user_data_that_cloud_init_knows_is_told_apart),
        cmocka_unit_test(test_made_up),
        cmocka_unit_test(test_given),
        cmocka_unit_test(test_volume),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
