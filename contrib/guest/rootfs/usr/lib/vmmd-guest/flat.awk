# Flattens JSON or a subset of YAML into lines "path<TAB>value": users.0.name<TAB>web. Values are encoded for printf %b.
# JSON: all of it. YAML: block maps and lists, plain and quoted scalars, literal blocks (|), and flow values that are JSON
# on one line. No anchors, tags, folded blocks or several documents. What it cannot read ends it with status 1.

{ line[NR] = $0 }

END {
    first = 1
    while (first <= NR && (line[first] ~ /^[ \t\r]*(#.*)?$/ || line[first] ~ /^---/))
        first++
    if (first > NR)
        exit 0
    if (line[first] ~ /^[ \t]*[{[]/) {
        for (i = first; i <= NR; i++)
            text = text line[i] "\n"
        json("")
        if (next_token() != "")
            fail("text after the end")
    } else {
        for (i = first; i <= NR; i++)
            if (line[i] !~ /^[ \t\r]*(#.*)?$/ && line[i] !~ /^(---|\.\.\.)/)
                block(line[i])
    }
    exit 0
}

function fail(why) {
    print "flat: " why > "/dev/stderr"
    exit 1
}

function emit(path, value) { print path "\t" value }

function join(path, key) { return path == "" ? key : path "." key }

# ---- JSON: `text` is what is left to read

function next_token(   token) {
    sub(/^[ \t\r\n]+/, "", text)
    if (text == "")
        return ""
    if (!match(text, /^("([^"\\]|\\.)*"|[][{},:]|[^][{},:" \t\r\n]+)/))
        fail("bad JSON")
    token = substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    return token
}

function json(path) { json_value(path, next_token()) }

function json_value(path, token,   n, key) {
    if (token == "{") {
        token = next_token()
        if (token == "}")
            return
        for (;;) {
            if (token !~ /^"/)
                fail("bad JSON: a key is missing")
            key = string(token)
            if (next_token() != ":")
                fail("bad JSON: no colon")
            json(join(path, key))
            token = next_token()
            if (token == "}")
                return
            if (token != ",")
                fail("bad JSON: object not closed")
            token = next_token()
        }
    } else if (token == "[") {
        token = next_token()
        if (token == "]")
            return
        for (n = 0;; n++) {
            json_value(join(path, n), token)
            token = next_token()
            if (token == "]")
                return
            if (token != ",")
                fail("bad JSON: list not closed")
            token = next_token()
        }
    } else if (token ~ /^"/)
        emit(path, string(token))
    else if (token ~ /^(true|false|null|-?[0-9][-+.0-9eE]*)$/)
        emit(path, token)
    else
        fail("bad JSON: " token)
}

# A quoted JSON string, encoded for printf %b: \uXXXX becomes octal UTF-8, surrogate pairs joined.
function string(quoted,   hit, s, out, c, code, low) {
    s = substr(quoted, 2, length(quoted) - 2)
    while ((hit = index(s, "\\")) > 0) {
        out = out substr(s, 1, hit - 1)
        c = substr(s, hit + 1, 1)
        s = substr(s, hit + 2)
        if (c == "u") {
            code = hex(substr(s, 1, 4))
            s = substr(s, 5)
            if (code >= 55296 && code < 56320 && s ~ /^\\u[dD][c-fC-F]/) {
                low = hex(substr(s, 3, 4))
                s = substr(s, 7)
                code = 65536 + (code - 55296) * 1024 + low - 56320
            }
            out = out utf8(code)
        } else if (c == "n" || c == "t" || c == "r" || c == "b" || c == "f")
            out = out "\\" c
        else if (c == "\\")
            out = out "\\\\"
        else
            out = out c
    }
    return out s
}

function hex(digits,   i, n) {
    n = 0
    for (i = 1; i <= length(digits); i++)
        n = n * 16 + index("0123456789abcdef", tolower(substr(digits, i, 1))) - 1
    return n
}

function octal(byte) { return sprintf("\\0%03o", byte) }

function utf8(code) {
    if (code < 128)
        return octal(code)
    if (code < 2048)
        return octal(192 + int(code / 64)) octal(128 + code % 64)
    if (code < 65536)
        return octal(224 + int(code / 4096)) octal(128 + int(code / 64) % 64) octal(128 + code % 64)
    return octal(240 + int(code / 262144)) octal(128 + int(code / 4096) % 64) octal(128 + int(code / 64) % 64) \
        octal(128 + code % 64)
}

# ---- YAML: a stack of open maps and lists by indentation; `pending` is the path whose value comes on deeper lines

function push(ind, what) {
    depth++
    indent[depth] = ind
    kind[depth] = what
    at[depth] = pending
    count[depth] = 0
    pending = ""
}

function block(text_line,   ind, rest) {
    match(text_line, /^ */)
    ind = RLENGTH
    rest = substr(text_line, ind + 1)
    sub(/[ \t\r]+$/, "", rest)
    if (rest ~ /^\t/)
        fail("a tab indents")
    entry(ind, rest)
}

function entry(ind, rest,   path, key, item) {
    item = rest ~ /^-( |$)/
    while (depth > 0 && (ind < indent[depth] || (ind == indent[depth] && kind[depth] == "list" && !item)))
        depth--
    if (item) {
        if (depth == 0 || kind[depth] != "list" || indent[depth] != ind)
            push(ind, "list")
        path = join(at[depth], count[depth]++)
        match(rest, /^- */)
        ind += RLENGTH
        rest = substr(rest, RLENGTH + 1)
        pending = path
        if (rest ~ /^[A-Za-z0-9_.-]+:( |$)/ || rest ~ /^- /)
            entry(ind, rest)
        else if (rest != "")
            scalar(path, rest, ind - 2)
        return
    }
    if (!match(rest, /^[A-Za-z0-9_.-]+:( |$)/))
        fail("not understood: " rest)
    if (depth == 0 || kind[depth] != "map" || indent[depth] != ind)
        push(ind, "map")
    key = rest
    sub(/:.*/, "", key)
    path = join(at[depth], key)
    sub(/^[^:]*: */, "", rest)
    if (rest == "" || rest ~ /^#/)
        pending = path
    else
        scalar(path, rest, ind)
}

function scalar(path, value, ind,   out, n) {
    if (value ~ /^\|[-+]?$/) {
        # Literal block: the lines deeper than its key, `i` is the main loop's line.
        for (; i < NR && (line[i + 1] ~ /^[ \t]*$/ || (match(line[i + 1], /^ */) && RLENGTH > ind)); i++) {
            match(line[i + 1], /^ */)
            if (n == 0)
                n = RLENGTH
            out = out plain(substr(line[i + 1], n + 1)) "\\n"
        }
        emit(path, out)
    } else if (value ~ /^[[{]/) {
        text = value
        json(path)
    } else if (value ~ /^"/) {
        if (!match(value, /^"([^"\\]|\\.)*"/))
            fail("quote not closed")
        emit(path, string(substr(value, 1, RLENGTH)))
    } else if (value ~ /^'/) {
        sub(/^'/, "", value)
        sub(/'[ \t]*(#.*)?$/, "", value)
        gsub(/''/, "'", value)
        emit(path, plain(value))
    } else {
        sub(/[ \t]+#.*$/, "", value)
        emit(path, plain(value))
    }
}

function plain(value) {
    gsub(/\\/, "\\\\", value)
    gsub(/\t/, "\\t", value)
    return value
}
