/* json_text.c - see json_text.h. */
#include "model/json_text.h"

#include "base/mem.h"

char *json_text(json_t *json, size_t flags, size_t *ret_len)
{
    flags |= JSON_COMPACT | JSON_ENCODE_ANY;
    size_t len = json != NULL ? json_dumpb(json, NULL, 0, flags) : 0;
    char *text = len > 0 ? mem_alloc(len + 1) : NULL;

    if (text != NULL && json_dumpb(json, text, len, flags) != len) { /* it allocates a little itself */
        mem_free(text);
        text = NULL;
    }
    if (text != NULL) {
        text[len] = '\0';
        if (ret_len != NULL)
            *ret_len = len;
    }
    json_decref(json);
    return text;
}
