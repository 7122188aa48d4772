/* unpack.c - gzip, xz and zstd, as they come.
 *
 * The libraries' own streaming decoders, each with a bound on its memory, which a hostile header could otherwise choose.
 * Several streams one after the other are one file, as the tools have it. */
#include <lzma.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "helpers/fetch/fetch.h"

enum { OUT_SIZE = 1 << 18, ZSTD_WINDOW_LOG = 27 };
#define XZ_MEMORY (256ULL << 20)

static enum packing kind;
static z_stream gz;
static lzma_stream xz = LZMA_STREAM_INIT;
static ZSTD_DStream *zstd;
static bool whole; /* nothing is missing at this point */
static uint8_t out_bytes[OUT_SIZE];

const char *packing_text(enum packing packing)
{
    static const char *const texts[] = {"unknown", "none", "gzip", "xz", "zstd"};

    return texts[packing];
}

enum packing packing_of(const uint8_t *head, size_t len)
{
    if (len >= 3 && memcmp(head, "\x1f\x8b\x08", 3) == 0)
        return PACKING_GZIP;
    if (len >= 6 && memcmp(head,
                           "\xfd"
                           "7zXZ\0",
                           6) == 0)
        return PACKING_XZ;
    if (len >= 4 && memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0)
        return PACKING_ZSTD;
    return PACKING_NONE;
}

static _Noreturn void broken(const char *why)
{
    fail(strcmp(job.source, "oci") == 0 ? "oci" : "download", "the %s stream is damaged%s%s", packing_text(kind),
         why != NULL ? ": " : "", why != NULL ? why : "");
}

void unpack_begin(enum packing packing)
{
    kind = packing;
    whole = false;
    if (kind == PACKING_GZIP && inflateInit2(&gz, 16 + MAX_WBITS) != Z_OK)
        fail("io", "no memory to unpack gzip");
    if (kind == PACKING_XZ && lzma_stream_decoder(&xz, XZ_MEMORY, LZMA_CONCATENATED) != LZMA_OK)
        fail("io", "no memory to unpack xz");
    if (kind == PACKING_ZSTD) {
        zstd = ZSTD_createDStream();
        if (zstd == NULL || ZSTD_isError(ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG)))
            fail("io", "no memory to unpack zstd");
    }
}

static void unpack_gzip(const uint8_t *data, size_t len, void (*out)(const uint8_t *, size_t))
{
    gz.next_in = (Bytef *)(uintptr_t)data;
    gz.avail_in = (uInt)len;
    do {
        if (whole) { /* another member, or the padding that some tools leave */
            while (gz.avail_in > 0 && *gz.next_in == 0)
                gz.next_in++, gz.avail_in--;
            if (gz.avail_in == 0)
                return;
            inflateReset(&gz);
            whole = false;
        }
        gz.next_out = out_bytes;
        gz.avail_out = OUT_SIZE;
        int rc = inflate(&gz, Z_NO_FLUSH);
        if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
            broken(gz.msg);
        out(out_bytes, OUT_SIZE - gz.avail_out);
        whole = rc == Z_STREAM_END;
    } while (gz.avail_in > 0 || (gz.avail_out == 0 && !whole));
}

static void xz_step(lzma_action action, void (*out)(const uint8_t *, size_t))
{
    do {
        xz.next_out = out_bytes;
        xz.avail_out = OUT_SIZE;
        lzma_ret rc = lzma_code(&xz, action);
        if (rc == LZMA_MEMLIMIT_ERROR)
            fail("unsafe", "unpacking the xz stream takes more than %llu MiB of memory", XZ_MEMORY >> 20);
        if (rc != LZMA_OK && rc != LZMA_STREAM_END && rc != LZMA_BUF_ERROR)
            broken(rc == LZMA_FORMAT_ERROR ? "no xz" : NULL);
        out(out_bytes, OUT_SIZE - xz.avail_out);
        whole = rc == LZMA_STREAM_END;
        if (rc == LZMA_BUF_ERROR && xz.avail_out > 0)
            return;
    } while (xz.avail_in > 0 || (xz.avail_out == 0 && !whole));
}

static void unpack_zstd(const uint8_t *data, size_t len, void (*out)(const uint8_t *, size_t))
{
    ZSTD_inBuffer in = {data, len, 0};
    ZSTD_outBuffer o;

    do {
        o = (ZSTD_outBuffer){out_bytes, OUT_SIZE, 0};
        size_t rc = ZSTD_decompressStream(zstd, &o, &in);
        if (ZSTD_isError(rc))
            broken(ZSTD_getErrorName(rc));
        out(out_bytes, o.pos);
        whole = rc == 0;
    } while (in.pos < in.size || (o.pos == o.size && !whole));
}

void unpack(const uint8_t *data, size_t len, void (*out)(const uint8_t *data, size_t len))
{
    switch (kind) {
    case PACKING_GZIP:
        unpack_gzip(data, len, out);
        break;
    case PACKING_XZ:
        xz.next_in = data;
        xz.avail_in = len;
        xz_step(LZMA_RUN, out);
        break;
    case PACKING_ZSTD:
        unpack_zstd(data, len, out);
        break;
    case PACKING_UNKNOWN:
    case PACKING_NONE:
    default:
        out(data, len);
        break;
    }
}

static void nothing(const uint8_t *data, size_t len)
{
    (void)data;
    if (len > 0)
        broken("data after its end");
}

void unpack_end(void)
{
    if (kind == PACKING_XZ && !whole) {
        xz.avail_in = 0;
        xz_step(LZMA_FINISH, nothing);
    }
    if (kind != PACKING_NONE && kind != PACKING_UNKNOWN && !whole)
        broken("it was cut short");
}
