#!/usr/bin/env python3
"""After a test run: was each route answered with each 2xx (and 101) that api/openapi.yaml documents, and was each code of
api/errors.def provoked?  Reads what the test workers left in build/tests/coverage.

    contract-coverage.py --reset    before the run: forget earlier runs
    contract-coverage.py            after it: exit 1 with a list of what was never seen
    contract-coverage.py -v         … and print what was seen
"""
import glob
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from lib import conform  # noqa: E402

# Codes that no HTTP or CLI test can provoke: the file that proves them (it must name the code), and why it is there.
ELSEWHERE = {
}

# Route and status that are proved elsewhere, likewise.
ROUTES_ELSEWHERE = {
}


def reset():
    for path in glob.glob(os.path.join(conform.COVERAGE_DIR, "*.json")):
        os.unlink(path)


def load():
    routes, codes = set(), set()
    files = glob.glob(os.path.join(conform.COVERAGE_DIR, "*.json"))
    if not files:
        sys.exit(f"contract-coverage: nothing in {conform.COVERAGE_DIR}: run the tests first")
    for path in files:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        routes.update((route, status) for route, status in data["routes"])
        codes.update(data["codes"])
    return routes, codes


def wanted_routes(doc):
    for template, item in doc["paths"].items():
        for method in conform.METHODS:
            for status in item.get(method, {}).get("responses", {}):
                if int(status) < 300:
                    yield f"{method.upper()} {template}", int(status)


def proved_elsewhere(code, row_name, where):
    """The file is there and names the code, by its string or by its enum name."""
    path = os.path.join(conform.ROOT, where)
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return code.replace(conform.PREFIX, "") in text or f"ERR_{row_name}" in text


def main():
    if "--reset" in sys.argv:
        reset()
        return 0
    contract = conform.contract()
    routes, codes = load()
    if "-v" in sys.argv:
        for route, status in sorted(routes):
            print(f"seen  {route} {status}")
        for code in sorted(codes):
            print(f"seen  {code}")
    missing = []
    for route, status in sorted(set(wanted_routes(contract.doc)) - routes):
        if (route, status) not in ROUTES_ELSEWHERE:
            missing.append(f"never answered: {route} -> {status}")
    for code in sorted(set(contract.errors) - codes):
        name = code.replace(conform.PREFIX, "")
        if name not in ELSEWHERE:
            missing.append(f"never provoked: {name}")
            continue
        where, _ = ELSEWHERE[name]
        if not proved_elsewhere(code, contract.errors[code]["name"], where):
            missing.append(f"never provoked: {name} ({where} is said to prove it, but is missing or does not name it)")
    for name in ELSEWHERE:
        if conform.PREFIX + name not in contract.errors:
            missing.append(f"ELSEWHERE names {name}, which errors.def has not")
    for line in missing:
        print(f"contract-coverage: {line}", file=sys.stderr)
    if not missing:
        print(f"contract-coverage: {len(set(wanted_routes(contract.doc)))} answers and {len(contract.errors)} codes, all seen")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
