/* crash.c - see crash.h.  The file is looked at by each point; it is small, and this is a test build. */
#include "base/crash.h"

#ifdef VMMD_CRASH_POINTS

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat seen; /* the file as it was last read */
static char trace_path[PATH_MAX], wanted[256];
static long countdown;

static void read_file(const char *path)
{
    char line[PATH_MAX + 16];
    FILE *file = fopen(path, "re");

    trace_path[0] = wanted[0] = '\0';
    countdown = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "trace %4095s", trace_path);
        sscanf(line, "crash %255s %ld", wanted, &countdown);
    }
    if (file != NULL)
        fclose(file);
}

/* Written anew by rename: another inode, or at least another time. */
static void look(const char *path)
{
    struct stat st = {0};

    if (stat(path, &st) == 0 && st.st_ino == seen.st_ino && st.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
        st.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    seen = st;
    read_file(path);
}

static void trace(const char *name)
{
    char line[300];
    CLEANUP_FD int fd = open(trace_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    int len = snprintf(line, sizeof(line), "%s\n", name);

    if (fd >= 0)
        fd_write_all(fd, line, (size_t)len);
}

void crash_point(const char *name, ...)
{
    const char *path = getenv("VMMD_CRASH_FILE");
    char text[256];
    va_list args;

    if (path == NULL)
        return;
    va_start(args, name);
    vsnprintf(text, sizeof(text), name, args);
    va_end(args);
    pthread_mutex_lock(&lock);
    look(path);
    if (trace_path[0] != '\0')
        trace(text);
    if (strcmp(text, wanted) == 0 && --countdown == 0)
        _exit(CRASH_STATUS);
    pthread_mutex_unlock(&lock);
}

#endif
