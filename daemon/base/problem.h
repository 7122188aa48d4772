/* problem.h - an error as its RFC 9457 problem document, the one form in which clients see errors.  Any thread. */
#ifndef BASE_PROBLEM_H
#define BASE_PROBLEM_H

#include "base/buf.h"
#include "base/error.h"

/* Appends the document of a set error to out; completes before return, owns nothing.  `instance` is the request's path,
 * request_id its id; NULL for either renders "".  Fails (-1) when out is full or memory is short. */
int error_problem(const struct error *err, const char *instance, const char *request_id, struct buf *out);

#endif
