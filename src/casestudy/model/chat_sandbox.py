"""How is a chat template run without trusting it?

A template is a program that comes with a checkpoint. It runs in jinja2's immutable sandbox, with
the functions that transformers gives it, in a separate process. The operating system ends the
process when it takes too much time or memory, or writes to a file. `chat` runs this file as that
process; it needs only jinja2.

Reads one JSON object from stdin and writes one to stdout; nothing else goes through.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

MEMORY = 2**30
"""Bytes of address space; jinja2 takes some 5 % of it."""


def main() -> None:
    """Answer the one request."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    answer = render(request)
    sys.stdout.buffer.write(json.dumps(answer).encode())


def limit(seconds: float) -> None:
    """Bound processor time, memory and files, where the system can."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def render(request: dict[str, Any]) -> dict[str, Any]:
    """The texts, or what was wrong: `problem`, `kind`, and the number of the conversation."""
    import jinja2

    environment = sandbox()
    datetime.now().strftime("%c")  # what a date needs is loaded before files are closed
    limit(request["seconds"])
    at = 0
    try:
        template = environment.from_string(request["template"])
        texts: list[str] = []
        for variables in request["jobs"]:
            at = len(texts)
            texts.append(_bounded(template, variables, request["most"]))
        return {"texts": texts}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "syntax", "problem": f"line {error.lineno}: {error.message}", "at": at}
    except TooLong:
        return {"kind": "length", "problem": "", "at": at}
    except MemoryError:
        return {"kind": "memory", "problem": "", "at": at}
    except Refused as error:
        return {"kind": "raised", "problem": str(error), "at": at}
    except Exception as error:  # noqa: BLE001 - a template can fail in any way
        return {"kind": "failed", "problem": f"{type(error).__name__}: {error}"[:500], "at": at}


class TooLong(Exception):
    """A text longer than any prompt."""


def _bounded(template: Any, variables: dict[str, Any], most: int) -> str:
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > most:
            raise TooLong
    return "".join(parts)


class Refused(Exception):
    """What a template says by `raise_exception`."""


def sandbox() -> Any:
    """jinja2's sandbox with what transformers gives to chat templates, and no more.

    Source: transformers, utils/chat_template_utils.py, `_compile_jinja_template`.
    """
    import jinja2.ext
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %}: what the assistant says; only its text counts."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a block with a scope of its own, as the macro is by which transformers marks it
            return nodes.Scope(body).set_lineno(line)

    class PlainNamespace(Namespace):
        """A namespace without attributes that begin with an underscore."""

        def __init__(*given: Any, **named: Any) -> None:
            self, rest = given[0], given[1:]
            entries = dict(*rest, **named)
            for name in entries:
                _check(name)
            Namespace.__init__(self, entries)

        def __setitem__(self, name: str, value: Any) -> None:
            _check(name)
            Namespace.__setitem__(self, name, value)

    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace with the attribute {name!r}")

    def raise_exception(message: Any) -> None:
        raise Refused(str(message)[:500])

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    class PlainDict:
        """`dict`, without the type."""

        def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
            return dict(*given, **named)

        def fromkeys(self, *given: Any) -> dict[Any, Any]:
            return dict.fromkeys(*given)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return environment


if __name__ == "__main__":
    main()
