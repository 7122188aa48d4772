"""The samples of GET /metrics."""
import re

SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\.)*"(?:,[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\.)*")*\})?'
                    r' (-?[0-9.eE+-]+|NaN|[+-]Inf)$')


def samples(api):
    """{(name, labels or None): value}"""
    found = {}
    for line in api.get("/metrics").text.splitlines():
        if line and not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            assert (match[1], match[2]) not in found, f"twice: {line}"
            found[(match[1], match[2])] = float(match[3])
    return found


def limit_used(api, limit):
    return samples(api)[("vmmd_limit_used", f'{{limit="{limit}"}}')]


def limit_refused(api, limit):
    return samples(api)[("vmmd_limit_refused_total", f'{{limit="{limit}"}}')]
