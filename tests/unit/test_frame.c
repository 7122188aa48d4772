/* test_frame.c - the helpers' framed protocol, hostile frames, the wrapper's first line, and quoting for a shell. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/frame.h"
#include "base/mem.h"
#include "guest/script.h"

struct seen {
    unsigned n;
    int types[16];
    size_t lens[16];
    struct buf bytes;
    unsigned stop_at;
};

static bool take(void *arg, int type, const char *data, size_t len)
{
    struct seen *s = arg;

    s->types[s->n % 16] = type;
    s->lens[s->n % 16] = len;
    buf_append(&s->bytes, data, len);
    return ++s->n != s->stop_at;
}

static void frames_come_whole_however_they_are_cut(void **state)
{
    struct buf wire = BUF_INIT(1 << 20);
    static char large[100000];

    (void)state;
    memset(large, 'x', sizeof(large));
    frame_append(&wire, FRAME_OUT, "hello", 5);
    frame_append(&wire, FRAME_INPUT_END, "", 0);
    frame_append(&wire, FRAME_ERR, large, sizeof(large)); /* two frames */
    for (size_t step = 1; step < wire.len; step = step * 3 + 1) {
        struct seen s = {.bytes = BUF_INIT(1 << 20)};
        struct frames f;
        frames_init(&f);
        for (size_t at = 0; at < wire.len; at += step)
            assert_int_equal(frames_feed(&f, wire.data + at, wire.len - at < step ? wire.len - at : step, take, &s), 0);
        assert_int_equal(s.n, 4);
        assert_int_equal(s.types[0], FRAME_OUT);
        assert_int_equal(s.lens[1], 0);
        assert_int_equal(s.lens[2], FRAME_MAX);
        assert_int_equal(s.bytes.len, 5 + sizeof(large));
        buf_done(&s.bytes);
        frames_done(&f);
    }
    buf_done(&wire);
}

static void a_frame_that_is_too_long_ends_the_reading(void **state)
{
    static const char bad[][6] = {"O\xff\xff\xff\xff", {'O', 0, 1, 0, 1, 0}};
    struct seen s = {.bytes = BUF_INIT(1024)};

    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (size_t cut = 1; cut <= 5; cut++) {
            struct frames f;
            frames_init(&f);
            int rc = frames_feed(&f, bad[i], cut, take, &s);
            if (rc == 0)
                rc = frames_feed(&f, bad[i] + cut, 6 - cut, take, &s);
            assert_int_equal(rc, -1);
            frames_done(&f);
        }
    assert_int_equal(s.n, 0);
}

static void a_callee_that_says_stop_is_left_alone(void **state)
{
    struct buf wire = BUF_INIT(1024);
    struct seen s = {.bytes = BUF_INIT(1024), .stop_at = 2};
    struct frames f;

    (void)state;
    for (int i = 0; i < 5; i++)
        frame_append(&wire, FRAME_OUT, "x", 1);
    frames_init(&f);
    assert_int_equal(frames_feed(&f, wire.data, wire.len, take, &s), 0);
    assert_int_equal(s.n, 2);
    frames_done(&f);
    buf_done(&wire);
    buf_done(&s.bytes);
}

static void the_first_line_is_found_behind_noise(void **state)
{
    char text[] = "motd \001vmmd other 1 1\n\001vmmd abc 42 1\nrest", half[] = "x\001vmmd abc 42";
    char *said;
    size_t end;

    (void)state;
    assert_int_equal(mark_find(text, sizeof(text) - 1, "abc", &said, &end), 1);
    assert_string_equal(said, "42 1");
    assert_string_equal(text + end, "rest");
    assert_int_equal(mark_find(half, sizeof(half) - 1, "abc", &said, &end), 0);
    assert_int_equal(mark_find(half, 0, "abc", &said, &end), 0);
}

/* What /bin/sh makes of a command line, into out. */
static int shell(const char *command, char *out, size_t size)
{
    char path[] = "/tmp/test_frame.XXXXXX";
    int fd = mkstemp(path);
    pid_t pid;
    int status;

    assert_true(fd >= 0);
    pid = fork();
    if (pid == 0) {
        dup2(fd, 1);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(99);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    ssize_t n = pread(fd, out, size - 1, 0);
    out[n > 0 ? n : 0] = '\0';
    close(fd);
    unlink(path);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void quoting_is_undone_by_a_shell(void **state)
{
    static const char *const words[] = {"", "a b", "it's", "''", "$HOME `id` \\ \" *", "-n", "\n", "\xc3\xa4"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        struct buf command = BUF_INIT(1024);
        char out[256];
        buf_str(&command, "printf %s ");
        shell_quote(&command, words[i]);
        assert_int_equal(shell(command.data, out, sizeof(out)), 0);
        assert_string_equal(out, words[i]);
        buf_done(&command);
    }
}

/* Runs a request as sshd would: the command line in a login shell. */
static int run(const struct exec_request *req, char *said, char *out, size_t size)
{
    struct buf body = BUF_INIT(1 << 20), command = BUF_INIT(1 << 20);
    char text[8192], nonce[NONCE_MAX], *line;
    size_t end;
    bool feed;

    script_nonce(nonce);
    assert_int_equal(script_body(&body, req, nonce, SCRIPT_SSH), 0);
    assert_int_equal(script_ssh_command(&command, &body, NULL, nonce, &feed), 0);
    assert_false(feed);
    int rc = shell(command.data, text, sizeof(text));
    assert_int_equal(mark_find(text, strlen(text), nonce, &line, &end), 1);
    snprintf(said, 64, "%.60s", line);
    snprintf(out, size, "%s", text + end);
    buf_done(&body);
    buf_done(&command);
    return rc;
}

static void the_wrapper_leads_its_group_and_becomes_the_command(void **state)
{
    const char *words[] = {
        "sh", "-c",  "echo $$; read -r _ _ _ _ g _ </proc/$$/stat; echo $g; printf '%s|' \"$X\" \"$@\"; exit 7",
        "sh", "a b", "'"};
    struct exec_env env[] = {{"X", "it's"}};
    struct exec_request req = {.command = words, .n_command = 6, .env = env, .n_env = 1, .cwd = "/tmp"};
    char said[64], out[4096];
    long pid, leader, echoed, group;

    (void)state;
    assert_int_equal(run(&req, said, out, sizeof(out)), 7);
    assert_int_equal(sscanf(said, "%ld %ld", &pid, &leader), 2);
    assert_int_equal(sscanf(out, "%ld\n%ld\n", &echoed, &group), 2);
    assert_int_equal(leader, 1);
    assert_int_equal(pid, echoed);
    assert_int_equal(pid, group);
    assert_non_null(strstr(out, "it's|a b|'|"));
}

static void a_directory_that_is_not_there_is_told(void **state)
{
    static const struct {
        const char *cwd, *said;
        enum error_code code;
    } rows[] = {{"/nonesuch", "!no-cwd", ERR_GUEST_FILE_NOT_FOUND},
                {"/etc/passwd", "!cwd-file", ERR_GUEST_NOT_A_DIRECTORY}};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct exec_request req = {.script = "echo no", .cwd = rows[i].cwd};
        struct error err = ERROR_INIT;
        char said[64], out[256];
        run(&req, said, out, sizeof(out));
        assert_string_equal(said, rows[i].said);
        assert_string_equal(out, "");
        script_refusal(said + 1, &req, "vm", &err);
        assert_int_equal(err.code, rows[i].code);
        error_done(&err);
    }
}

static void names_of_variables(void **state)
{
    (void)state;
    assert_true(exec_env_name_valid("_A9"));
    assert_false(exec_env_name_valid(""));
    assert_false(exec_env_name_valid("9A"));
    assert_false(exec_env_name_valid("A=B"));
    assert_false(exec_env_name_valid("A;id"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_come_whole_however_they_are_cut),
        cmocka_unit_test(a_frame_that_is_too_long_ends_the_reading),
        cmocka_unit_test(a_callee_that_says_stop_is_left_alone),
        cmocka_unit_test(the_first_line_is_found_behind_noise),
        cmocka_unit_test(quoting_is_undone_by_a_shell),
        cmocka_unit_test(the_wrapper_leads_its_group_and_becomes_the_command),
        cmocka_unit_test(a_directory_that_is_not_there_is_told),
        cmocka_unit_test(names_of_variables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
