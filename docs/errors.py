#!/usr/bin/env python3
"""Writes docs/errors.md from api/errors.def.

    docs/errors.py            write it
    docs/errors.py --check    exit 1 if it is not current
"""
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "docs", "errors.md")
STRING = r'"(?:[^"\\]|\\.)*"'
ROW = re.compile(rf"^ERROR\(\s*\w+,\s*({STRING}),\s*(\d+),\s*(\d+),\s*(true|false),\s*({STRING}),\s*((?:{STRING}\s*)+)\)", re.M)


def text(literals):
    return "".join(json.loads(piece) for piece in re.findall(STRING, literals)).replace("|", "\\|")


def render():
    with open(os.path.join(ROOT, "api", "errors.def"), encoding="utf-8") as file:
        source = file.read()
    rows = ROW.findall(source)
    if len(rows) != len(re.findall(r"^ERROR\(", source, re.M)):
        sys.exit("docs/errors.py: a row of api/errors.def is not understood")
    lines = [
        "# Error codes", "",
        "Generated from `api/errors.def` by `docs/errors.py`. Each code has the prefix `vm_manager::`. `GET /v1/errors` and",
        "`vmctl errors` say the same. *again* tells whether the same request may well succeed later.", "",
        "| code | HTTP | vmctl exits | again | what | what to do |", "|---|---|---|---|---|---|",
    ]
    for code, status, exit_code, retryable, title, help_text in rows:
        lines.append(f"| `{text(code)}` | {status if status != '0' else '–'} | {exit_code} | {'yes' if retryable == 'true' else 'no'} "
                     f"| {text(title)} | {text(help_text)} |")
    return "\n".join(lines) + "\n"


def main():
    if "--check" in sys.argv:
        try:
            with open(OUT, encoding="utf-8") as file:
                current = file.read()
        except FileNotFoundError:
            current = ""
        if current != render():
            sys.exit("docs/errors.md is not what api/errors.def says: run docs/errors.py")
        return
    with open(OUT, "w", encoding="utf-8") as file:
        file.write(render())


if __name__ == "__main__":
    main()
