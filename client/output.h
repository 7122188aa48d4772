/* output.h - every byte that vmctl writes to stdout goes through here. */
#ifndef VMCTL_OUTPUT_H
#define VMCTL_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Buffers bytes for stdout as they are (logs, scripts). After the reader of stdout is gone all output is dropped in
 * silence. */
void out_write(const void *bytes, size_t size);
void out_puts(const char *s);
void out_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Like out_puts and out_printf for texts that came from elsewhere: control characters are made visible (\x1b), so that
 * they cannot drive the terminal or break a row. */
void out_visible(const char *s);
void out_line(const char *format, ...) __attribute__((format(printf, 1, 2))); /* adds the newline */

/* Writes a document, indented, with a newline; out_json_line in one line. */
void out_json(const json_t *json);
void out_json_line(const json_t *json);

/* Writes a JSON document as indented `key: value` lines, for documents that have no table of their own. */
void out_document(const json_t *json);

/* Sends what is buffered. Returns false when stdout is closed or full: a stream then ends. */
bool out_flush(void);

/* At the end of vmctl: sends the rest; returns `code`, or EXIT_FAILED after a line on stderr when stdout could not be
 * written for another reason than its reader being gone. */
int out_end(int code);

/* A table whose columns are as wide as their widest cell; nothing is cut. */
struct table {
    char **cells;
    size_t columns;
    size_t count;
    size_t room;
};

/* Adds the cells of a row, copied; `columns` strings. */
void table_row(struct table *t, const char *const *cells);

/* Writes the table and frees it. */
void table_print(struct table *t);

/* Writes `s` with its control characters made visible to a stream (stderr). */
void text_visible(FILE *to, const char *s);

#endif
