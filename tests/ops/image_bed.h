/* image_bed.h - a core_bed with an image cache: real helpers, and a disk of each kind to be pulled by file:. */
#ifndef TESTS_IMAGE_BED_H
#define TESTS_IMAGE_BED_H

#include "core_bed.h"

enum image_act { ACT_PULL, ACT_PULL_CONVERT, ACT_CONVERT, ACT_CONVERT_IN_PLACE, ACT_DELETE, ACT_CREATE };

struct image_bed {
    struct core_bed core;
    char helpers[64]; /* links to the real ones, or what a test puts in their place */
    char build[400];  /* where the real ones are */
    char raw[80], vmdk[80];
    bool arm; /* the next begin calls mem_fail_nth(fail_nth) when its body is made */
    size_t fail_nth;
};

int image_bed_set_up(void **state); /* the state is a core_bed, the first member */
int image_bed_tear_down(void **state);
/* The helper is a shell script; NULL: the real one again. */
void image_bed_replace(struct image_bed *b, const char *helper, const char *script);
/* Whether the act is on an image that is there; it is pulled, as "im". */
void image_bed_prepare(struct image_bed *b, enum image_act act);
/* The operation, referenced; or NULL and the error.  ACT_CREATE makes VM "web" of the raw disk, with the labels (JSON, or NULL). */
struct operation *image_bed_begin(struct image_bed *b, enum image_act act, const char *key, const char *labels,
                                  struct error *err);
/* The images as GET shows them, and the names of the files; mem_free. */
char *image_bed_list(struct image_bed *b);
char *image_bed_files(struct image_bed *b);
/* Waits until no operation, pull or change is under way. */
void image_bed_rest(struct image_bed *b);
/* The VM and all images are removed, and nothing is left of them. */
void image_bed_clear(struct image_bed *b);

#endif
