/* test_files_script.c - files by the guest's shell: the scripts in a shell, and answers that no honest guest gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "guest/files_script.h"

/* --- answers --- */

static int parse_info(const char *text, struct files_info *ret)
{
    size_t end = 0;
    int rc = files_info_parse(text, strlen(text), ret, &end);

    if (rc == 0)
        assert_int_equal(text[end - 1], '\n');
    return rc;
}

static void a_line_tells_what_a_file_is(void **state)
{
    struct files_info info;
    CLEANUP_BUF struct buf json = BUF_INIT(512);

    (void)state;
    assert_int_equal(parse_info("81e8 300 1700000000 2049:77\nbytes\n", &info), 0);
    assert_int_equal(info.mode & 07777, 0750);
    assert_int_equal(info.size, 300);
    assert_string_equal(info.identity, "2049:77");
    files_info_json(&json, "a\"b", &info);
    assert_string_equal(json.data, "{\"name\":\"a\\\"b\",\"type\":\"file\",\"size\":300,\"mode\":\"0750\","
                                   "\"mtime\":1700000000}");
}

static void no_other_line_is_believed(void **state)
{
    static const char *const lines[] = {
        "",
        "\n",
        "81a4 300 1700000000 2049:77",
        "81a4 300 1700000000\n",
        "81a4 300 1700000000 \n",
        "81a4 x 1700000000 1:1\n",
        "81a4 99999999999999999999 0 1:1\n",
        "81a4 18446744073709551615 0 1:1\n",
        "81a4 1 0 1:1 \n",
        "81a4 1 0 one\n",
        "81a4 1 0 1:11111111111111111111111111111111111111111111111111111111\n",
        "zz 1 0 1:1\n",
    };
    struct files_info info;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        assert_int_equal(parse_info(lines[i], &info), -1);
    char longer[500];
    snprintf(longer, sizeof(longer), "81a4 1 0 %450s\n", "1:1");
    assert_int_equal(parse_info(longer, &info), -1);
}

struct entries {
    char text[1024];
    unsigned n, max;
};

static bool take(void *arg, const char *json, size_t len)
{
    struct entries *e = arg;

    assert_int_equal(strlen(json), len);
    if (strlen(e->text) + len < sizeof(e->text))
        memcpy(e->text + strlen(e->text), json, len + 1);
    return ++e->n < e->max;
}

static int parse_list(const char *data, size_t len, struct entries *e)
{
    *e = (struct entries){.max = 100};
    return files_list_parse(data, len, take, e);
}

static void a_name_may_be_anything(void **state)
{
    static const char list[] = "81a4 1 2 ./new\nline/\n41ed 3 4 ./end\n/\na1ff 5 -6 ./\xff/\nend\n";
    struct entries e;

    (void)state;
    assert_int_equal(parse_list(list, sizeof(list) - 1, &e), 0);
    assert_string_equal(e.text,
                        "{\"name\":\"new\\nline\",\"type\":\"file\",\"size\":1,\"mode\":\"0644\",\"mtime\":2}"
                        "{\"name\":\"end\\n\",\"type\":\"directory\",\"size\":3,\"mode\":\"0755\",\"mtime\":4}"
                        "{\"name\":\"\xef\xbf\xbd\",\"type\":\"symlink\",\"size\":5,\"mode\":\"0777\",\"mtime\":-6}");
    assert_int_equal(parse_list("end\n", 4, &e), 0);
    assert_int_equal(e.n, 0);
    e = (struct entries){.max = 1};
    assert_int_equal(files_list_parse(list, sizeof(list) - 1, take, &e), 1);
    assert_int_equal(e.n, 1);
}

/* Each in memory that ends where it does, for ASan. */
static void a_list_that_is_cut_or_made_up_is_refused(void **state)
{
    static const char whole[] = "81a4 1 2 ./a/\n41ed 3 4 ./b/\nend\n";
    static const char *const lists[] = {
        "81a4 1 2 ./a/end\n", "81a4 1 2 a/\nend\n", "81a4 1 2 .//\nend\n", "81a4 1 2./a/\nend\n", "81a4 1 ./a/\nend\n",
        "end\nend\n",         "/\nend\n",           "./\nend\n",
    };
    struct entries e;

    (void)state;
    for (size_t len = 0; len < sizeof(whole) - 1; len++) {
        char *copy = test_malloc(len + 1);
        memcpy(copy, whole, len);
        assert_int_equal(parse_list(copy, len, &e), -1);
        test_free(copy);
    }
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
        assert_int_equal(parse_list(lists[i], strlen(lists[i]), &e), -1);
    assert_int_equal(parse_list("81a4 1 2 ./a\0b/\nend\n", 20, &e), -1);
    char longer[4000] = "81a4 1 2 ./";
    memset(longer + 11, 'x', sizeof(longer) - 11);
    memcpy(longer + sizeof(longer) - 6, "/\nend\n", 6);
    assert_int_equal(parse_list(longer, sizeof(longer), &e), -1);
}

static const char *why(int code, const char *text)
{
    static char detail[FILES_DETAIL_MAX];
    const char *kind = files_failure(code, text, strlen(text), detail);

    assert_true(strlen(detail) < sizeof(detail));
    return kind;
}

static void the_last_words_say_why(void **state)
{
    char longer[2000], detail[FILES_DETAIL_MAX];

    (void)state;
    assert_string_equal(why(1, "stat: cannot statx '/x': No such file or directory\n"), "missing");
    assert_string_equal(why(2, "sh: 9: cannot create /x/y: Directory nonexistent\n"), "missing");
    assert_string_equal(why(1, "sh: can't create /x/y: nonexistent directory\n"), "missing");
    assert_string_equal(why(1, "cat: a: No such file: Permission denied"), "denied");
    assert_string_equal(why(1, "rm: cannot remove 'a: Permission denied': Is a directory\n"), "failed");
    assert_string_equal(why(1, "Permission denied\nmv: No space left on device\n"), "no_space");
    assert_string_equal(why(1, "mv: cannot move 'a' to 'b': Operation not permitted\n"), "denied");
    assert_string_equal(why(1, "rmdir: failed to remove 'a': Directory not empty\n"), "not_empty");
    assert_string_equal(why(64, "Permission denied"), "changed");
    assert_string_equal(why(1, ""), "failed");
    assert_string_equal(files_failure(63, "stat", 4, detail), "no_tool");
    assert_string_equal(detail, "stat");
    memset(longer, 0xe4, sizeof(longer)); /* no character begins there */
    snprintf(longer + sizeof(longer) - 30, 30, "': Permission denied");
    assert_string_equal(why(1, longer), "denied");
}

/* --- the scripts, in this host's shell and with its tools --- */

struct ran {
    int code;
    char out[8192], errors[1024];
    size_t len;
};

static size_t read_back(const char *path, char *into, size_t max)
{
    FILE *file = fopen(path, "r");
    size_t n;

    assert_non_null(file);
    n = fread(into, 1, max - 1, file);
    into[n] = '\0';
    fclose(file);
    unlink(path);
    return n;
}

static struct ran run(const struct files_step *step, const char *input)
{
    CLEANUP_BUF struct buf script = BUF_INIT(1 << 20);
    struct ran r;
    FILE *in = fopen("../in", "w");

    assert_non_null(in);
    fputs(input, in);
    fclose(in);
    assert_int_equal(files_script(&script, step), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (freopen("../in", "r", stdin) && freopen("../out", "w", stdout) && freopen("../errors", "w", stderr))
            execl("/bin/sh", "sh", "-c", script.data, NULL);
        _exit(126);
    }
    assert_int_equal(waitpid(pid, &r.code, 0), pid);
    r.code = WEXITSTATUS(r.code);
    r.len = read_back("../out", r.out, sizeof(r.out));
    read_back("../errors", r.errors, sizeof(r.errors));
    unlink("../in");
    return r;
}

static struct ran ask(const struct files_request *req)
{
    return run(&(struct files_step){.req = req}, "");
}

static struct ran put(const struct files_request *req, const char *temp, size_t offset, const char *data, bool last)
{
    return run(&(struct files_step){.req = req, .temp = temp, .offset = offset, .len = strlen(data), .last = last},
               data);
}

static int setup(void **state)
{
    static char dir[32];

    snprintf(dir, sizeof(dir), "/tmp/test-files-XXXXXX");
    *state = dir;
    return mkdtemp(dir) != NULL && chdir(dir) == 0 && mkdir("d", 0755) == 0 && chdir("d") == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    char *dir = *state;

    return chdir(dir) == 0 && rmdir("d") == 0 && chdir("/") == 0 && rmdir(dir) == 0 ? 0 : -1;
}

#define NAME "-it's $x\n"

static void a_file_comes_in_pieces_and_goes(void **state)
{
    struct files_request req = {.op = FILES_PUT, .path = NAME, .mode = "0751"};
    CLEANUP_FREE char *temp = files_temp_path(NAME);
    struct files_info info;
    struct entries e;
    size_t at;

    (void)state;
    assert_int_equal(put(&req, temp, 0, "one", false).code, 0);
    struct stat st;
    assert_int_equal(stat(temp, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(access(NAME, F_OK), -1);
    struct ran r = put(&req, temp, 3, "two", true);
    assert_int_equal(r.code, 0);
    assert_int_equal(files_info_parse(r.out, r.len, &info, &at), 0);
    assert_int_equal(info.size, 6);
    assert_int_equal(info.mode & 07777, 0751);
    req = (struct files_request){.op = FILES_GET, .path = NAME};
    r = ask(&req);
    assert_int_equal(files_info_parse(r.out, r.len, &info, &at), 0);
    assert_string_equal(r.out + at, "onetwo");
    r = run(&(struct files_step){.req = &req, .offset = FILES_GET_CHUNK}, "");
    assert_int_equal(r.code, 0); /* behind its end there is nothing */
    assert_int_equal(files_info_parse(r.out, r.len, &info, &at), 0);
    assert_int_equal(at, r.len);
    r = ask(&(struct files_request){.op = FILES_LIST, .path = "."});
    assert_int_equal(parse_list(r.out, r.len, &e), 0);
    assert_int_equal(e.n, 1);
    assert_non_null(strstr(e.text, "\"-it's $x\\n\""));
    assert_int_equal(ask(&(struct files_request){.op = FILES_RENAME, .path = NAME, .to = "-n"}).code, 0);
    assert_int_equal(ask(&(struct files_request){.op = FILES_DELETE, .path = "-n"}).code, 0);
    assert_int_equal(ask(&(struct files_request){.op = FILES_MKDIR, .path = "a/b//", .parents = true}).code, 0);
    assert_int_equal(ask(&(struct files_request){.op = FILES_DELETE, .path = "a"}).code, 1); /* it is not empty */
    assert_int_equal(ask(&(struct files_request){.op = FILES_DELETE, .path = "a/b/"}).code, 0);
    assert_int_equal(ask(&(struct files_request){.op = FILES_DELETE, .path = "a"}).code, 0);
}

static const char *fails(const struct ran *r)
{
    assert_int_not_equal(r->code, 0);
    return why(r->code, r->errors);
}

static void what_is_refused_leaves_nothing(void **state)
{
    struct files_request req = {.op = FILES_PUT, .path = "f"};
    struct ran r = put(&req, ".t", 3, "late", true);

    (void)state;
    assert_string_equal(fails(&r), "changed");
    r = put(&req, ".t", 0, "one", false);
    assert_int_equal(r.code, 0);
    r = put(&req, ".t", 2, "more", false); /* what is there is not what was sent */
    assert_string_equal(fails(&r), "changed");
    assert_int_equal(access(".t", F_OK), -1);
    fclose(fopen(".t", "w")); /* somebody was faster */
    r = put(&req, ".t", 0, "one", true);
    assert_string_equal(fails(&r), "failed");
    unlink(".t");
    req.path = "nope/f";
    r = put(&req, "nope/.t", 0, "one", true);
    assert_string_equal(fails(&r), "missing");
    req.path = "..";
    r = put(&req, ".t", 0, "one", true);
    assert_string_equal(fails(&r), "not_file");
    r = ask(&(struct files_request){.op = FILES_GET, .path = "nope"});
    assert_string_equal(fails(&r), "missing");
    assert_int_equal(mkfifo("fifo", 0600), 0);
    r = ask(&(struct files_request){.op = FILES_GET, .path = "fifo"});
    assert_string_equal(fails(&r), "not_file");
    r = ask(&(struct files_request){.op = FILES_LIST, .path = "fifo"});
    assert_string_equal(fails(&r), "not_directory");
    unlink("fifo");
    r = ask(&(struct files_request){.op = FILES_STAT, .path = "nope"});
    assert_string_equal(fails(&r), "missing");
    r = ask(&(struct files_request){.op = FILES_RENAME, .path = "nope", .to = "x"});
    assert_string_equal(fails(&r), "missing");
    r = ask(&(struct files_request){.op = FILES_DELETE, .path = "nope"});
    assert_string_equal(fails(&r), "missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_tells_what_a_file_is),
        cmocka_unit_test(no_other_line_is_believed),
        cmocka_unit_test(a_name_may_be_anything),
        cmocka_unit_test(a_list_that_is_cut_or_made_up_is_refused),
        cmocka_unit_test(the_last_words_say_why),
        cmocka_unit_test_setup_teardown(a_file_comes_in_pieces_and_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused_leaves_nothing, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
