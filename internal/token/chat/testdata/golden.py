"""Writes what Jinja itself renders into the cases beside this file.

Run it by hand where Python has jinja2 (Debian: python3-jinja2), and read the
difference: golden.py [FILE.txt ...]. The environment is the one in which
transformers renders chat templates. Tests read only what it has written.
"""
import datetime
import glob
import json
import os
import sys

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2026, 3, 5, 7, 8, 9)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return env


def section(lines, at):
    end = at
    while end < len(lines) and not lines[end].startswith(("=== ", "--- ")):
        end += 1
    return "\n".join(lines[at:end]), end


def golden(path):
    env = environment()
    shared = path[: -len(".txt")] + ".jinja"
    shared = open(shared, encoding="utf-8", newline="").read() if os.path.exists(shared) else None
    lines = open(path, encoding="utf-8", newline="").read().removesuffix("\n").split("\n")
    out, at = [], 0
    while at < len(lines) and not lines[at].startswith("=== "):
        out.append(lines[at])
        at += 1
    common = out[0].partition("all: ")[2] if out else ""
    while at < len(lines):
        name = lines[at]
        source, at = section(lines, at + 1)
        variables = common or "{}"
        if at < len(lines) and lines[at] == "--- vars":
            variables, at = section(lines, at + 1)
        while at < len(lines) and not lines[at].startswith("=== "):
            at += 1
        try:
            got = "--- want\n" + env.from_string(shared if shared is not None else source).render(**json.loads(variables))
        except Exception as err:
            got = "--- refused"
            print(f"{os.path.basename(path)}: {name[4:]}: {type(err).__name__}: {err}")
        out.append(name)
        if shared is None:
            out.append(source)
        if variables != (common or "{}"):
            out += ["--- vars", variables]
        out.append(got)
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write("\n".join(out) + "\n")


for file in sys.argv[1:] or sorted(glob.glob(os.path.join(HERE, "*.txt"))):
    golden(file)
