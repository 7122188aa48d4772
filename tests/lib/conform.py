"""Holds every answer of the daemon against api/openapi.yaml and api/errors.def, and keeps count of what was seen.

check() raises AssertionError with all that differs. Published schemas are open, so that a client survives new fields; here
they are closed first, so that a field which the contract does not know is found.
"""
import copy
import json
import os
import re
import warnings

import jsonschema
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OPENAPI = os.path.join(ROOT, "api", "openapi.yaml")
ERRORS_DEF = os.path.join(ROOT, "api", "errors.def")
COVERAGE_DIR = os.environ.get("VMMD_COVERAGE_DIR", os.path.join(ROOT, "build", "tests", "coverage"))
PREFIX = "vm_manager::"
METHODS = ("get", "put", "post", "patch", "delete")

_ERROR_ROW = re.compile(
    r'^ERROR\(\s*(\w+),\s*"([^"]+)",\s*(\d+),\s*(\d+),\s*(true|false),\s*((?:"(?:[^"\\]|\\.)*"\s*)+),\s*((?:"(?:[^"\\]|\\.)*"\s*)+)\)',
    re.M)


def _c_string(text):
    """The value of adjacent C string literals."""
    return "".join(json.loads(piece) for piece in re.findall(r'"(?:[^"\\]|\\.)*"', text))


def read_errors_def(path=ERRORS_DEF):
    """{full code: {status, exit, retryable, title, help}}"""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    rows = {}
    for match in _ERROR_ROW.finditer(text):
        rows[PREFIX + match[2]] = {
            "name": match[1],
            "status": int(match[3]), "exit": int(match[4]), "retryable": match[5] == "true",
            "title": _c_string(match[6]), "help": _c_string(match[7]),
        }
    assert rows, f"no ERROR rows in {path}"
    assert len(rows) == len(re.findall(r"^ERROR\(", text, re.M)), f"a row of {path} was not understood"
    return rows


def _close(node):
    """Makes each object schema that says nothing of further fields refuse them."""
    if isinstance(node, dict):
        if "properties" in node and "additionalProperties" not in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)


class Contract:
    def __init__(self, path=OPENAPI):
        with open(path, encoding="utf-8") as file:
            self.doc = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.errors = read_errors_def()
        self.closed = copy.deepcopy(self.doc)
        for schema in self.closed["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)
        _close(self.closed["components"]["schemas"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._resolver = jsonschema.RefResolver.from_schema(self.closed)
        self._validators = {}
        self._routes = []
        for template, item in self.doc["paths"].items():
            pattern = re.compile("^" + re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)) + "$")
            self._routes.append((template.count("{"), template, pattern, item))
        self._routes.sort(key=lambda route: route[0])

    def resolve(self, node):
        while isinstance(node, dict) and "$ref" in node:
            target = self.doc
            for part in node["$ref"].lstrip("#/").split("/"):
                target = target[part.replace("~1", "/").replace("~0", "~")]
            node = target
        return node

    def validator(self, name):
        if name not in self._validators:
            self._validators[name] = jsonschema.Draft202012Validator(
                {"$ref": f"#/components/schemas/{name}"}, resolver=self._resolver)
        return self._validators[name]

    def schema_errors(self, name, value):
        """What keeps `value` from being a `name`, a line each."""
        return [f"{error.json_path}: {_leaf(error)}" for error in self.validator(name).iter_errors(value)]

    def assert_is(self, name, value):
        problems = self.schema_errors(name, value)
        assert not problems, f"not a {name}:\n  " + "\n  ".join(problems) + "\n" + json.dumps(value, indent=1)[:4000]

    def route(self, path):
        """(template, path item) of a request path, or (None, None)."""
        path = path.split("?", 1)[0]
        for _, template, pattern, item in self._routes:
            if pattern.match(path):
                return template, item
        return None, None

    def check(self, method, path, status, headers, body):
        """headers: a case-insensitive mapping; body: bytes."""
        wrong = list(self._differences(method, path, status, headers, body))
        assert not wrong, (f"{method} {path} -> {status} breaks the contract:\n  " + "\n  ".join(wrong)
                           + "\n--- headers\n" + "\n".join(f"{k}: {v}" for k, v in headers.items())
                           + "\n--- body\n" + body[:3000].decode("utf-8", "replace"))

    def _differences(self, method, path, status, headers, body):
        template, item = self.route(path)
        code = None
        if not headers.get("X-Request-Id"):
            yield "no X-Request-Id"
        ctype = (headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if status >= 400 and method != "HEAD":
            if ctype != "application/problem+json":
                yield f"content type {ctype!r} of a problem"
                return
            try:
                problem = json.loads(body)
            except ValueError as error:
                yield f"the problem is not JSON: {error}"
                return
            code = problem.get("code") if isinstance(problem, dict) else None
            yield from self._problem(problem, status, headers)

        verb = "get" if method == "HEAD" else method.lower()
        operation = item.get(verb) if item else None
        COVERAGE.seen(f"{verb.upper()} {template}" if operation else None, status, code)
        if item is None:
            if status < 400:
                yield "a path that the contract does not have"
            return
        if operation is None:
            yield from self._other_method(item, status, headers)
            return
        if str(status) not in operation["responses"]:
            yield f"status {status} is not documented (there are {', '.join(sorted(operation['responses']))})"
            return
        if status >= 400:
            allowed = operation["x-error-codes"].get(str(status), [])
            if code is not None and code not in allowed:
                yield f"code {code} is not documented for {status} (there are {', '.join(allowed)})"
            return
        response = self.resolve(operation["responses"][str(status)])
        for name in ("Location", "ETag"):
            if name in response.get("headers", {}) and name == "ETag" and not headers.get(name):
                yield f"no {name}"
        if status == 202 and "Location" in response.get("headers", {}) and not headers.get("Location"):
            yield "202 without Location"
        content = response.get("content")
        if method == "HEAD":
            if body:
                yield "a body in the answer to HEAD"
            return
        if content is None:
            return
        if ctype not in content:
            yield f"content type {ctype!r} (documented: {', '.join(content)})"
            return
        if ctype == "application/json":
            try:
                value = json.loads(body)
            except ValueError as error:
                yield f"the body is not JSON: {error}"
                return
            for inner in _codes_within(value):
                COVERAGE.seen(None, 0, inner)
            yield from self.schema_errors(content[ctype]["schema"]["$ref"].rsplit("/", 1)[1], value)

    def _other_method(self, item, status, headers):
        if status not in (405, 400, 401, 403, 429, 503):
            yield f"status {status} for a method that the route does not have"
        if status == 405:
            allow = {name.strip() for name in (headers.get("Allow") or "").split(",")}
            want = {name.upper() for name in METHODS if name in item} | ({"HEAD"} if "get" in item else set())
            if allow - {"OPTIONS"} != want:
                yield f"Allow: {', '.join(sorted(allow))} where it should be {', '.join(sorted(want))}"

    def _problem(self, problem, status, headers):
        yield from self.schema_errors("Problem", problem)
        if not isinstance(problem, dict):
            return
        code = problem.get("code")
        row = self.errors.get(code)
        if row is None:
            yield f"code {code!r} is not in errors.def"
            return
        if problem.get("status") != status:
            yield f"the document's status {problem.get('status')} is not the answer's"
        if row["status"] != status:
            yield f"{code} has status {row['status']}"
        if problem.get("type") != f"/v1/errors/{code}":
            yield f"type {problem.get('type')!r}"
        if problem.get("title") != row["title"]:
            yield f"title {problem.get('title')!r} is not the catalogue's"
        if problem.get("retryable") != row["retryable"]:
            yield "retryable is not the catalogue's"
        if not problem.get("detail"):
            yield "an empty detail"
        if not problem.get("help"):
            yield "an empty help"
        if headers.get("X-Request-Id") and problem.get("request_id") != headers.get("X-Request-Id"):
            yield f"request_id {problem.get('request_id')!r} is not X-Request-Id's"


def _codes_within(value):
    """The codes of failed operations and failed VMs in an answer; the catalogue's rows are none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("error", "failure") and isinstance(inner, dict) and isinstance(inner.get("code"), str):
                yield inner["code"]
            else:
                yield from _codes_within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _codes_within(inner)


def _leaf(error):
    """anyOf hides its reason: show the deepest one."""
    if error.context:
        return error.message[:200] + " <- " + "; ".join(f"{sub.json_path}: {sub.message[:200]}" for sub in error.context)
    return error.message[:400]


class Coverage:
    """Routes, statuses and codes that this process has seen; save() leaves them for tests/lint/contract-coverage.py."""

    def __init__(self):
        self.routes = set()
        self.codes = set()

    def seen(self, route, status, code=None):
        if route:
            self.routes.add((route, int(status)))
        if code:
            self.codes.add(code)

    def save(self, name):
        if not self.routes and not self.codes:
            return
        os.makedirs(COVERAGE_DIR, exist_ok=True)
        path = os.path.join(COVERAGE_DIR, f"{name}-{os.getpid()}.json")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump({"routes": sorted(self.routes), "codes": sorted(self.codes)}, file, indent=1)
        os.replace(path + ".tmp", path)


COVERAGE = Coverage()
_contract = None


def contract():
    global _contract
    if _contract is None:
        _contract = Contract()
    return _contract


def record_code(code):
    """For tests that see a code elsewhere than in an HTTP answer: in an operation's error, or on vmctl's stderr."""
    code = code if code.startswith(PREFIX) else PREFIX + code
    assert code in contract().errors, f"{code} is not in errors.def"
    COVERAGE.seen(None, 0, code)


def record_route(route, status):
    """For what does not pass the client, such as a WebSocket's 101: record_route("GET /v1/vms/{vm}/console", 101)."""
    method, template = route.split(" ", 1)
    assert str(status) in contract().doc["paths"][template][method.lower()]["responses"]
    COVERAGE.seen(route, status)
