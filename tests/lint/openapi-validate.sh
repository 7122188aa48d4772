#!/bin/sh
# Has a public validator read api/openapi.yaml, after it has shown that it refuses two planted errors.
#
# The validator comes from npm, pinned, into build/node, and is reused from there: only the first run needs the network.
# swagger-parser runs on the Node.js of Debian 12; redocly, which knows more, wants 20.19 and is used where that is found.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
node_dir=${VMMD_NODE_DIR:-$root/build/node}
doc=${1:-$root/api/openapi.yaml}
parser=@apidevtools/swagger-parser
parser_version=12.1.0
redocly=@redocly/cli
redocly_version=2.77.0

command -v node >/dev/null && command -v npm >/dev/null || {
    echo "openapi-validate: node and npm are needed: apt-get install nodejs npm" >&2
    exit 1
}

# have PACKAGE VERSION: the package is there in this very version
have() {
    grep -q "\"version\": \"$2\"" "$node_dir/node_modules/$1/package.json" 2>/dev/null
}

wanted=
have $parser $parser_version || wanted="$parser@$parser_version"
if node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a == 22 && b >= 12) || (a == 20 && b >= 19) ? 0 : 1)'; then
    use_redocly=1
    have $redocly $redocly_version || wanted="$parser@$parser_version $redocly@$redocly_version"
else
    use_redocly=
fi
if [ -n "$wanted" ]; then
    mkdir -p "$node_dir"
    # shellcheck disable=SC2086 # a list of words
    npm install --loglevel=error --no-save --no-package-lock --no-audit --no-fund --prefix "$node_dir" $wanted
fi

validate() {
    (cd "$node_dir" && node -e '
        require("@apidevtools/swagger-parser").validate(process.argv[1]).then(
            doc => { if (doc.openapi !== "3.1.0") { console.error("not OpenAPI 3.1.0: " + doc.openapi); process.exit(1); } },
            error => { console.error(String(error)); process.exit(1); });' "$1")
}

# A validator that accepts everything would pass unnoticed: plant a misnamed keyword and a dangling reference.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sed '0,/responses:/s//respones:/; 0,/in: query/s//in: quary/' "$root/api/openapi.yaml" >"$scratch/keyword.yaml"
sed '0,/schemas\/Vm"/s//schemas\/NoSuchVm"/' "$root/api/openapi.yaml" >"$scratch/reference.yaml"
for planted in keyword reference; do
    if cmp -s "$root/api/openapi.yaml" "$scratch/$planted.yaml"; then
        echo "openapi-validate: the planted $planted error did not take" >&2
        exit 1
    fi
    if validate "$scratch/$planted.yaml" 2>/dev/null; then
        echo "openapi-validate: the validator accepts a planted $planted error" >&2
        exit 1
    fi
done

validate "$doc"
echo "openapi-validate: $(basename "$doc") is valid ($parser $parser_version)"
if [ -n "$use_redocly" ]; then
    cd "$root"
    REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true "$node_dir/node_modules/.bin/redocly" lint --extends=spec "$doc" >"$scratch/log" 2>&1 || {
        cat "$scratch/log" >&2
        exit 1
    }
    echo "openapi-validate: $(basename "$doc") is valid ($redocly $redocly_version)"
fi
