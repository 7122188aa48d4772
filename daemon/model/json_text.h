/* json_text.h - a document as text.  jansson's json_dumps may leave parts out when memory is short; this does not. */
#ifndef MODEL_JSON_TEXT_H
#define MODEL_JSON_TEXT_H

#include <jansson.h>
#include <stddef.h>

/* Compact text (`flags`: more of jansson's) of a document, which is released; the caller mem_frees it.  ret_len may be
 * NULL.  Returns NULL when the document is NULL or memory is short.  Any thread. */
char *json_text(json_t *json, size_t flags, size_t *ret_len);

#endif
