/* seed.c - builds a NoCloud seed.
 *
 * Happy path: meta-data is a JSON object (JSON is YAML), user-data the caller's text or "#cloud-config" and a JSON object
 * with the user, its keys and the host name; libarchive writes both, and what else was given, as an ISO image.  Built as
 * data, so that no host name or key can end its string and add a line of its own.
 *
 * Failures: memory, text that is not UTF-8, and the disk; the half-written file is removed. */
#include "cloudinit/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/mem.h"

enum { DOCUMENT_MAX = 4 << 20, MIME_WITHIN = 4096 };

bool seed_user_data_known(const char *user_data)
{
    static const char *const headers[] = {"#cloud-config",   "#!",           "#include",
                                          "#cloud-boothook", "#upstart-job", "#part-handler",
                                          "## template:",    "content-type:"};
    char head[MIME_WITHIN + 1];

    user_data += strspn(user_data, " \t\r\n\v\f");
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        if (strncasecmp(user_data, headers[i], strlen(headers[i])) == 0)
            return true;
    snprintf(head, sizeof(head), "%.*s", MIME_WITHIN, user_data);
    return *user_data == '\0' || strcasestr(head, "mime-version:") != NULL;
}

static int no_seed(struct error *err)
{
    return error_set(err, ERR_CLOUDINIT_ISO_FAILED, "the cloud-init seed could not be built");
}

static int dump_to_buf(const char *data, size_t len, void *arg)
{
    return buf_append(arg, data, len);
}

/* Takes the object; `heading` comes before it. */
static char *document(const char *heading, json_t *object)
{
    CLEANUP_BUF struct buf text = BUF_INIT(DOCUMENT_MAX);

    if (object) {
        buf_str(&text, heading);
        if (json_dump_callback(object, dump_to_buf, &text, JSON_INDENT(2)))
            text.failed = true;
        buf_char(&text, '\n');
        json_decref(object);
    }
    return object && !text.failed ? buf_take(&text, NULL) : NULL;
}

static json_t *keys_json(const struct seed_input *in)
{
    json_t *keys = json_array();

    for (size_t i = 0; keys && i < in->n_ssh_keys; i++) {
        if (json_array_append_new(keys, json_string(in->ssh_keys[i])) < 0) {
            json_decref(keys);
            return NULL;
        }
    }
    return keys;
}

static json_t *user_data_json(const struct seed_input *in)
{
    json_t *keys = keys_json(in);
    json_t *config;

    if (!keys)
        return NULL;
    config = json_pack("{s:[{s:s, s:s, s:s, s:b, s:o}], s:b, s:b}", "users", "name", in->user, "sudo",
                       "ALL=(ALL) NOPASSWD:ALL", "shell", "/bin/bash", "lock_passwd", 1, "ssh_authorized_keys", keys,
                       "ssh_pwauth", 0, "disable_root", 1);
    if (config && in->hostname && json_object_set_new(config, "hostname", json_string(in->hostname)) < 0) {
        json_decref(config);
        return NULL;
    }
    return config;
}

static char *copy_text(const char *text, bool *failed)
{
    char *copy = text ? mem_strdup(text) : NULL;

    *failed |= text && !copy;
    return copy;
}

int seed_build(const struct seed_input *input, struct seed *ret, struct error *err)
{
    struct seed s = {0};
    bool failed = false;
    json_t *meta = json_pack("{s:s, s:s*}", "instance-id", input->instance_id, "local-hostname", input->hostname);

    s.meta_data = document("", meta);
    s.user_data = input->user_data ? mem_strdup(input->user_data) : document("#cloud-config\n", user_data_json(input));
    s.vendor_data = copy_text(input->vendor_data, &failed);
    s.network_config = copy_text(input->network_config, &failed);
    if (failed || !s.meta_data || !s.user_data) {
        seed_done(&s);
        return no_seed(err);
    }
    *ret = s;
    return 0;
}

void seed_done(struct seed *seed)
{
    mem_free(seed->user_data);
    mem_free(seed->meta_data);
    mem_free(seed->vendor_data);
    mem_free(seed->network_config);
    *seed = (struct seed){0};
}

static int add_file(struct archive *iso, const char *name, const char *text)
{
    struct archive_entry *entry;
    size_t len;
    int rc;

    if (!text)
        return 0;
    entry = archive_entry_new();
    if (!entry)
        return -1;
    len = strlen(text);
    archive_entry_set_pathname(entry, name);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0444);
    archive_entry_set_size(entry, (la_int64_t)len);
    rc = archive_write_header(iso, entry) == ARCHIVE_OK ? 0 : -1;
    archive_entry_free(entry);
    if (rc == 0 && len > 0 && archive_write_data(iso, text, len) != (la_ssize_t)len)
        rc = -1;
    return rc;
}

static int write_archive(struct archive *iso, const struct seed *seed, int fd)
{
    if (archive_write_set_format_iso9660(iso) != ARCHIVE_OK ||
        archive_write_set_options(iso, "iso9660:volume-id=CIDATA,iso9660:rockridge=useful,iso9660:joliet") !=
            ARCHIVE_OK ||
        archive_write_open_fd(iso, fd) != ARCHIVE_OK)
        return -1;
    if (add_file(iso, "meta-data", seed->meta_data) < 0 || add_file(iso, "user-data", seed->user_data) < 0 ||
        add_file(iso, "vendor-data", seed->vendor_data) < 0 ||
        add_file(iso, "network-config", seed->network_config) < 0)
        return -1;
    return archive_write_close(iso) == ARCHIVE_OK ? 0 : -1;
}

static int write_error(int errnum, const char *text, const char *path, struct error *err)
{
    if (errnum == ENOSPC || errnum == EDQUOT)
        return error_errno(err, errnum, "cannot write the cloud-init seed %s", path);
    error_set(err, ERR_CLOUDINIT_ISO_FAILED, "cannot write the cloud-init seed %s", path);
    error_cause(err, "%s", text ? text : strerror(errnum));
    return -1;
}

int seed_write(const struct seed *seed, const char *path, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct archive *iso;
    int rc = 0;

    if (fd < 0)
        return write_error(errno, NULL, path, err);
    iso = archive_write_new();
    if (!iso) {
        unlink(path);
        return write_error(ENOMEM, NULL, path, err);
    }
    if (write_archive(iso, seed, fd) < 0)
        rc = write_error(archive_errno(iso), archive_error_string(iso), path, err);
    else if (fsync(fd) < 0)
        rc = write_error(errno, NULL, path, err);
    archive_write_free(iso);
    if (rc < 0)
        unlink(path);
    return rc;
}
