#!/usr/bin/env python3
"""Proves the house by reading the source: the table of ARCHITECTURE.md (who may include what), headers that stand alone,
sizes, banned functions, and a contract (api/openapi.yaml) and an error catalogue that say what the code says.

    house.py CHECK...      run these; without a name, all
    house.py --list        the names

Each check prints what is wrong as FILE:LINE: text; the exit status is 1 if anything is.
"""
import glob
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.chdir(ROOT)

# --- the table ---

LEAVES = ["qmp", "guest", "image", "net", "cloudinit"]
CORE = ["base", "model", "core", "backend/backend.h", "backend/console.h", "guest/exec.h", "guest/files.h", "store/store.h", "loop/loop.h", "loop/timer.h",
        "loop/op.h", "loop/work.h", "loop/logfile.h", "loop/child.h", "loop/stream.h"]

# folder: (what of ours it may include: folders, or single headers; whose libraries). Its own folder is always allowed.
TABLE = {
    "daemon/base": ([], []),
    "daemon/loop": (["base"], ["uv.h"]),
    "daemon/model": (["base"], ["jansson.h", "nettle/"]),
    "daemon/qmp": (["base", "loop"], ["jansson.h"]),
    "daemon/guest": (["base", "loop"], ["jansson.h", "nettle/"]),
    "daemon/image": (["base", "loop"], ["jansson.h"]),
    "daemon/net": (["base", "loop"], []),
    "daemon/cloudinit": (["base", "loop"], ["jansson.h", "archive.h", "archive_entry.h"]),
    "daemon/helpers": (["base", "helpers"], ["jansson.h", "seccomp.h", "curl/", "libssh/", "nettle/", "zlib.h", "lzma.h", "zstd.h"]),
    "daemon/backend": (["base", "model", "loop", "backend"] + LEAVES, ["jansson.h"]),
    "daemon/store": (["base", "model"], ["sqlite3.h", "jansson.h"]),
    "daemon/core": (CORE, ["jansson.h", "nettle/"]),
    "daemon/core/ops": (CORE + ["guest", "image", "cloudinit"], ["jansson.h"]),
    "daemon/rest": (["base", "model", "core/core.h", "core/tunnel.h", "core/exec.h", "core/files.h", "http/http.h", "backend/backend.h", "loop/loop.h",
                     "loop/timer.h"],
                    ["jansson.h", "nettle/"]),
    "daemon/http": (["base", "loop"], ["microhttpd.h", "jansson.h", "nettle/"]),
    "client": (["base"], ["curl/", "jansson.h"]),
}
# main.c and its like directly in daemon/ wire everything, and meet no library but jansson.
WIRING = (["*"], ["jansson.h"])
LIBRARIES = ["uv.h", "sqlite3.h", "microhttpd.h", "jansson.h", "curl/", "archive.h", "archive_entry.h", "seccomp.h", "nettle/",
             "libssh/", "openssl/", "gnutls/", "glib.h", "zlib.h", "lzma.h", "zstd.h"]
# Fields of parts that are always empty or null so far: a provision step, an address, a progress.
EMPTY = {"inline", "content_base64", "destination", "ip", "source", "seen_at", "total", "unit"}
# Known to their own folder alone.
PRIVATE = {"private.h", "internal.h"}
GENERATED = {"openapi_yaml.h", "errors.def"}

problems = []


def bad(path, line, text):
    problems.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def sources(*tops):
    found = []
    for top in tops:
        for dirpath, _, names in os.walk(top):
            found += [os.path.join(dirpath, name) for name in names if name.endswith((".c", ".h"))]
    return sorted(found)


def code_only(text):
    """The text with comments and the insides of literals blanked, line breaks kept."""
    def blank(match):
        found = match[0]
        if found.startswith("/"):
            return re.sub(r"[^\n]", " ", found)
        return found[0] + " " * (len(found) - 2) + found[-1]

    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'', blank, text, flags=re.S)


def matches(header, allowed):
    return any(header == one or (one.endswith("/") and header.startswith(one)) for one in allowed)


def check_includes():
    """Who may include what."""
    for path in sources("daemon", "client"):
        folder = os.path.dirname(path)
        if folder == "daemon":
            ours, theirs = WIRING
        else:
            while folder not in TABLE:
                folder = os.path.dirname(folder)
                if not folder:
                    bad(path, 0, "is in a folder that the table does not know")
                    break
            if not folder:
                continue
            ours, theirs = TABLE[folder]
        for number, line in enumerate(read(path).splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            header = match[2]
            if match[1] == "<":
                if matches(header, LIBRARIES) and not matches(header, theirs):
                    bad(path, number, f"<{header}> is not for {folder}")
                continue
            if header in GENERATED or folder == "client" and "/" not in header:
                continue
            if not os.path.exists(os.path.join("daemon", header)):
                bad(path, number, f'"{header}" is not a path below daemon/')
                continue
            target = os.path.dirname(header)
            own = os.path.dirname(path)[len("daemon/"):]
            if os.path.basename(header) in PRIVATE and not (own + "/").startswith(target + "/"):
                bad(path, number, f'"{header}" is private to daemon/{target}')
            elif target != own and ours != ["*"] and not any(
                    header == one or (not one.endswith(".h") and (target + "/").startswith(one + "/")) for one in ours):
                bad(path, number, f'"{header}" is not for {folder}')


def check_headers():
    """Each header compiles alone."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Idaemon", "-Iapi", "-fsyntax-only", "-x", "c", "-"]

    def compile_alone(path):
        text = f'#include "{os.path.relpath(path, "daemon")}"\n' if path.startswith("daemon/") else f'#include "{path}"\n'
        extra = [f"-I{os.path.dirname(path)}", "-I."]
        return path, subprocess.run(compiler + extra + flags, input=text, text=True, stderr=subprocess.PIPE, check=False)

    with ThreadPoolExecutor(2) as pool:
        for path, done in pool.map(compile_alone, [p for p in sources("daemon", "client", "tests") if p.endswith(".h")]):
            if done.returncode != 0:
                first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                bad(path, 0, f"does not compile alone: {first}")


BANNED = {
    "strcpy": "str_*, buf_*", "stpcpy": "buf_*", "strncpy": "snprintf", "sprintf": "snprintf", "vsprintf": "vsnprintf",
    "gets": "bounded reads", "strtok": "strtok_r or strcspn", "system": "child_spawn", "popen": "child_spawn",
    "atoi": "str_* with bounds", "atol": "str_* with bounds", "atof": "str_* with bounds", "alloca": "mem_*", "tmpnam": "mkostemp",
    "mktemp": "mkostemp", "strcat": "buf_*", "strncat": "buf_*",
}
# Tests meet no hostile bytes, and say what they allocate.
BANNED_IN_TESTS = {"gets", "system", "popen", "tmpnam", "mktemp", "sprintf", "vsprintf", "strcat"}
ALLOCATORS = {"malloc", "calloc", "realloc", "reallocarray", "free", "strdup", "strndup", "asprintf", "vasprintf"}


def check_banned():
    """Functions that are not called; memory only through base/mem.h."""
    names = "|".join(sorted(set(BANNED) | ALLOCATORS, key=len, reverse=True))
    call = re.compile(rf"(?<![\w.>])({names})\s*\(")
    for path in sources("daemon", "client", "tests"):
        for number, line in enumerate(code_only(read(path)).splitlines(), 1):
            for match in call.finditer(line):
                name = match[1]
                if path.startswith("tests/") and name not in BANNED_IN_TESTS:
                    continue
                if name in ALLOCATORS and path == "daemon/base/mem.c":
                    continue
                if name in ("strcat", "strncat") and path.startswith("daemon/base/"):
                    continue
                bad(path, number, f"{name}() is not used here: {BANNED.get(name, 'base/mem.h')}")


def check_sizes():
    """Files up to 600 lines (a test up to 1200), functions up to 80 (60 is a note)."""
    for path in sources("daemon", "client", "tests"):
        lines = read(path).splitlines()
        most = 1200 if path.startswith("tests/") else 600
        if len(lines) > most:
            bad(path, 0, f"has {len(lines)} lines; {most} is the most")
        begin = None
        for number, line in enumerate(lines, 1):
            if line == "{":
                begin = number
            elif line == "}" and begin:
                if number - begin - 1 > 80:
                    bad(path, begin, f"a function of {number - begin - 1} lines; 80 is the most")
                elif number - begin - 1 > 60:
                    print(f"note: {path}:{begin}: a function of {number - begin - 1} lines")
                begin = None


def tree():
    """Every file but what was built."""
    for dirpath, folders, names in os.walk("."):
        folders[:] = [f for f in folders if f not in (".git", "__pycache__", ".pytest_cache") and not f.startswith("build")]
        for name in sorted(names):
            yield os.path.relpath(os.path.join(dirpath, name))


def check_text():
    """No leftovers, no trailing blanks, and the documents are there."""
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    for path in tree():
        try:
            text = read(path)
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if marks.search(line):
                bad(path, number, f"a leftover: {marks.search(line)[0]}")
            if line != line.rstrip(" \t") and path.endswith((".c", ".h", ".py", ".sh", ".md", ".yaml", ".def", "Makefile")):
                bad(path, number, "blanks at the end of the line")
    for path in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs/errors.md"]:
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            bad(path, 0, "is missing")
    table = read("ARCHITECTURE.md") if os.path.exists("ARCHITECTURE.md") else ""
    for folder in TABLE:
        if f"`{folder}/`" not in table:
            bad("ARCHITECTURE.md", 0, f"does not name `{folder}/`")


# --- the contract ---

METHODS = ("get", "put", "post", "patch", "delete")


def contract():
    return yaml.safe_load(read("api/openapi.yaml"))


def catalogue():
    """{full code: (enum name, HTTP status)}"""
    rows = re.findall(r'^ERROR\(\s*(\w+),\s*"([^"]+)",\s*(\d+)', read("api/errors.def"), re.M)
    return {f"vm_manager::{code}": (name, int(status)) for name, code, status in rows}


def check_routes():
    """openapi.yaml and the route table name the same routes."""
    path = "daemon/rest/routes.c"
    if not os.path.exists(path):
        bad(path, 0, "is missing")
        return
    text = read(path)
    rows = {(m[1], m[2]): text.count("\n", 0, m.start()) + 1 for m in re.finditer(r'\{\s*(?:\.method = )?HTTP_(\w+),\s*"([^"]+)"', text)}
    said = {(method.upper(), template) for template, item in contract()["paths"].items() for method in METHODS if method in item}
    for method, template in sorted(set(rows) - said):
        bad(path, rows[method, template], f"{method} {template} is not in api/openapi.yaml")
    for method, template in sorted(said - set(rows)):
        bad("api/openapi.yaml", 0, f"{method} {template} is not in {path}")


def check_codes():
    """openapi.yaml, errors.def and the source name the same codes."""
    codes = catalogue()
    text = read("api/openapi.yaml")
    said = set(re.findall(r"vm_manager::[a-z_]+(?:::[a-z_]+)?", text))
    for code in sorted(said - set(codes)):
        bad("api/openapi.yaml", 0, f"{code} is not in api/errors.def")
    for code, (_, status) in sorted(codes.items()):
        if status != 0 and code not in said:
            bad("api/openapi.yaml", 0, f"{code} of api/errors.def is not named")
    doc = contract()
    for template, item in doc["paths"].items():
        for method in METHODS:
            for status, names in item.get(method, {}).get("x-error-codes", {}).items():
                for code in names:
                    if code in codes and codes[code][1] != int(status):
                        bad("api/openapi.yaml", 0, f"{method.upper()} {template}: {code} has status {codes[code][1]}, not {status}")
    source = "\n".join(read(path) for path in sources("daemon", "client"))
    used = set(re.findall(r"\bERR_([A-Z0-9_]+)\b", source))
    for code, (name, _) in sorted(codes.items()):
        if name not in used:
            bad("api/errors.def", 0, f"{code}: nothing makes it")


def properties(schema, found):
    """All names of properties below a schema."""
    if isinstance(schema, dict):
        names = schema.get("properties")
        if isinstance(names, dict):
            found.update(names)
        for value in schema.values():
            properties(value, found)
    elif isinstance(schema, list):
        for value in schema:
            properties(value, found)
    return found


def check_fields():
    """Each field of the contract's schemas is a word of a codec, and each key that the codecs take or write is a field."""
    doc = contract()
    fields = properties(doc, set())
    paths = sources("daemon/model", "daemon/core", "daemon/rest", "daemon/http") + ["daemon/base/problem.c"] + \
        glob.glob("daemon/backend/*.c") + glob.glob("daemon/backend/*/*.c")
    words = set()
    for path in paths:
        for literal in re.findall(r'"((?:[^"\\\n]|\\.)*)"', read(path)):
            words.update(re.findall(r"[A-Za-z_0-9]+", literal))
    for name in sorted(fields - words - EMPTY):
        bad("api/openapi.yaml", 0, f"no codec has a word of the field {name}")
    for path in sources("daemon/model", "daemon/rest") + ["daemon/base/problem.c"]:
        text = read(path)
        opened = set(re.findall(r"\w+", " ".join(re.findall(r"\bfields_open\(([^)]*)\)", text))))
        for match in re.finditer(r'const char \*const (\w+)\[\] = \{([^}]*)NULL\}', text):
            if match[1] not in opened:
                continue
            for name in re.findall(r'"(\w+)"', match[2]):
                if name not in fields:
                    bad(path, text.count("\n", 0, match.start()) + 1, f"takes the field {name}, which api/openapi.yaml has not")
        for match in re.finditer(r'\\"([a-z_]+)\\":', text):
            if match[1] not in fields:
                bad(path, text.count("\n", 0, match.start()) + 1, f"writes the field {match[1]}, which api/openapi.yaml has not")


def check_promises():
    """Every test that docs/reliability.md names is there."""
    path, last = "docs/reliability.md", None
    for number, line in enumerate(read(path).splitlines(), 1):
        for file, test in re.findall(r"(?:((?:http|cli|e2e|ops|unit|fault)/\w+\.(?:py|c))|`)(?:::|`: `)(\w+)", line) + \
                [(file, None) for file in re.findall(r"`((?:http|cli|e2e|ops|unit|fault)/\w+\.(?:py|c))", line)]:
            last = file or last
            if last is None or not os.path.exists(f"tests/{last}"):
                bad(path, number, f"there is no tests/{last}")
            elif test and not re.search(rf"\b{test}\b", read(f"tests/{last}")):
                bad(path, number, f"there is no {test} in tests/{last}")


CHECKS = {name[6:]: function for name, function in list(globals().items()) if name.startswith("check_")}


def main():
    if "--list" in sys.argv:
        print("\n".join(CHECKS))
        return 0
    for name in sys.argv[1:] or CHECKS:
        CHECKS[name]()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
