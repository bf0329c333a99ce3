"""Chat templates that want more time or memory than anybody has, or what is not theirs. Seeded: same draw, same text.

A kind is a way to get there; `template(kind, draw)` is one of its kind with sizes and forms of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Kind = Callable[[random.Random], str]


def _huge(draw: random.Random) -> int:
    """From what hurts a little to what nobody can pay."""
    return int(10 ** draw.uniform(7, 10.5))


def _powers(draw: random.Random) -> str:
    a, b = draw.randint(2, 9), draw.randint(7, 12)
    return draw.choice(
        (
            f"{{{{ {a}**({a}**{b}) }}}}",
            f"{{{{ 10**{_huge(draw)} }}}}",
            f"{{% if {a}**({a}**{b}) > 1 %}}x{{% endif %}}",
            f"{{% set x = ({a}**{_huge(draw)})|string|length %}}{{{{ x }}}}",
            f"{{% set n = namespace(x={a}) %}}{{% for i in range(60) %}}{{% set n.x = n.x * n.x %}}{{% endfor %}}",
            f"{{% set n = namespace(x={a}) %}}{{% for i in range(60) %}}{{% set n.x = n.x ** n.x %}}{{% endfor %}}",
            f"{{{{ messages|length ** messages|length * {a}**({a}**{b}) // 3 }}}}",
        )
    )


def _repetition(draw: random.Random) -> str:
    n = _huge(draw)
    return draw.choice(
        (
            f"{{{{ 'a' * {n} }}}}",
            f"{{{{ {n} * 'ab' }}}}",
            f"{{{{ ([0] * {n})|length }}}}",
            f"{{{{ ((1, 2) * {n})|length }}}}",
            f"{{{{ (messages * {n})|length }}}}",
            f"{{{{ ((('a' * 100000) * 1000) * {n // 10**6 + 1})|length }}}}",
            f"{{% set n = {n} %}}{{% set s = 'a' * n %}}{{{{ s[:1] }}}}",
            f"{{% for c in 'a' * {n} %}}{{% endfor %}}",
        )
    )


def _filters(draw: random.Random) -> str:
    n = _huge(draw)
    return draw.choice(
        (
            f"{{{{ 'a'|center({n}) }}}}",
            f"{{{{ 'a\\nb'|indent({n}) }}}}",
            f"{{{{ ('a\\n' * 10000)|indent({n // 1000}) }}}}",
            f"{{{{ messages|tojson(indent={n}) }}}}",
            f"{{{{ 'a'.ljust({n}) }}}}",
            f"{{{{ 'a'.rjust({n})|length }}}}",
            f"{{{{ 'a'.zfill({n}) }}}}",
            f"{{{{ '\\t\\t'.expandtabs({n}) }}}}",
            f"{{{{ [1]|batch({n}, 'x')|list }}}}",
            f"{{{{ [1]|slice({n})|list|length }}}}",
            f"{{{{ ('a' * 100000)|replace('a', 'b' * {n // 1000}) }}}}",
            f"{{{{ (['a'] * 100000)|join('b' * {n // 1000}) }}}}",
            f"{{{{ ('a ' * 1000000)|wordwrap({n}, wrapstring='b' * 100000) }}}}",
            f"{{{{ ('<a> ' * {n // 100})|escape|urlize }}}}",
        )
    )


def _formats(draw: random.Random) -> str:
    n = _huge(draw)
    return draw.choice(
        (
            f"{{{{ '%*d'|format({n}, 1) }}}}",
            f"{{{{ '%0{n}d' % 1 }}}}",
            f"{{{{ '%.{min(n, 2**31 - 1)}f' % 1.5 }}}}",
            f"{{{{ '%{n}s' % 'a' }}}}",
            f"{{{{ '{{:>{n}}}'.format(1) }}}}",
            f"{{{{ '{{0:{{1}}}}'.format(1, {n}) }}}}",
            f"{{{{ '{{0:0{n}d}}'.format(7) }}}}",
            f"{{{{ strftime_now('%{n}d') }}}}",
            f"{{{{ 1.5|round({n}) }}}}",
        )
    )


def _loops(draw: random.Random) -> str:
    depth, most = draw.randint(3, 6), draw.choice((1000, 99_999))
    opening = "".join(f"{{% for a{i} in range({most}) %}}" for i in range(depth))
    inside = draw.choice(("", "{% set x = 1 %}", "{% if a0 > a1 %}{% endif %}", "{{ '' }}", "{{ 'a' }}"))
    return opening + inside + "{% endfor %}" * depth


def _recursion(draw: random.Random) -> str:
    depth = draw.randint(25, 60)
    return draw.choice(
        (
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}" + f"{{{{ f({depth}) }}}}",
            "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set l = [1, 2] %}{% for x in l recursive %}{{ loop(l) }}{{ loop(l) }}{% endfor %}",
            "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call f() %}" * 30 + "{% endcall %}" * 30,
            "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('a') }}",
        )
    )  # fmt: skip


def _doubling(draw: random.Random) -> str:
    grow = draw.choice(
        (
            "n.x ~ n.x",
            "n.x + n.x",
            "n.x * 2",
            "[n.x, n.x]|join",
            "n.x|replace('a', 'aa')",
            "'%s%s'|format(n.x, n.x)",
            "n.x|upper ~ n.x|lower",
        )
    )
    start = draw.choice(("'a'", "'a' * 1000"))
    show = draw.choice(("", "{{ n.x }}", "{{ n.x|length }}", "{{ n.x|tojson }}"))
    times = draw.randint(34, 90)
    body = f"{{% for i in range({times}) %}}{{% set n.x = {grow} %}}{{% endfor %}}{show}"
    return f"{{% set n = namespace(x={start}) %}}{body}"


def _attributes(draw: random.Random) -> str:
    return draw.choice(
        (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ ''|attr('__class__')|attr('__mro__') }}",
            "{{ cycler.__init__.__globals__.os.system('id') }}",
            "{{ lipsum.__globals__['__builtins__'] }}",
            "{{ '{0.__class__.__mro__}'.format('') }}",
            "{{ ('{0.__cl' ~ 'ass__}').format('') }}",
            "{{ '{a.__class__}'.format_map({'a': 1}) }}",
            "{{ range.__self__ }}",
            "{{ self._TemplateReference__context.environment }}",
            "{{ messages.append(1) }}{{ messages.clear() }}",
            "{{ raise_exception.__globals__ }}",
            "{{ (messages|map(attribute='__class__')|list)[0].__init__ }}",
            "{{ joiner.__init__.__globals__ }}{{ namespace.__class__ }}",
            "{% set x = messages.__class__.__bases__ %}{{ x }}",
            "{% import 'x' as y %}{% include '/etc/passwd' %}",
        )
    )


def _sources(draw: random.Random) -> str:
    n = int(10 ** draw.uniform(3.5, 5.5))
    return draw.choice(
        (
            "{{ " + "(" * n + "1" + ")" * n + " }}",
            "{{ " + "[" * n + "]" * n + " }}",
            "{{ " + "1+" * n + "1 }}",
            "{{ " + "not " * n + "1 }}",
            "{{ " + "-" * n + "1 }}",
            "{{ a" + ".b" * n + " }}",
            "{{ a" + "|upper" * n + " }}",
            "{{ " + "1 if 1 else " * n + "1 }}",
            "{% if 1 %}" * n + "{% endif %}" * n,
            "{% for a in [1] %}" * (n // 100) + "{% endfor %}" * (n // 100),
            "{{ 'a' ~ " * n + "'b'" + " }}" * n,
            "{# " * n,
            "{{ '" + "a" * n * 10 + "' }}",
            "{% set x = " + "{'a': " * n + "1" + "}" * n + " %}",
            "{% macro " + "f" * n + "() %}{% endmacro %}",
            "{{ " + "9" * n + " }}",
        )
    )


def _searches(draw: random.Random) -> str:
    n = draw.choice((99_999, 60_000))
    return draw.choice(
        (
            f"{{{{ ([[0]] * {n})|sum(start=[])|length }}}}",
            f"{{% set t = 'a' * {n * 10} %}}{{% for i in range({n}) %}}{{{{ ('a' * {n} ~ 'b') in t }}}}{{% endfor %}}",
            f"{{{{ range({n})|select('in', range({n})|list)|list|length }}}}",
            f"{{{{ range({n})|map('string')|join(',')|list|unique|list|tojson }}}}",
            f"{{% set l = range({n})|list %}}{{% for i in l %}}{{{{ l|sort|first }}}}{{% endfor %}}",
            f"{{% for i in range({n}) %}}{{{{ range({n})|groupby('real')|length }}}}{{% endfor %}}",
            f"{{% for i in range({n}) %}}{{{{ messages|tojson|length }}}}{{% endfor %}}",
            "{% for a in messages|permutations %}{% endfor %}",
            f"{{{{ range({n})|list|pprint }}}}",
            f"{{{{ ('a' * {n})|wordcount }}}}{{{{ ('<' * {n * 10})|striptags }}}}",
        )
    )


KINDS: dict[str, Kind] = {
    "powers": _powers,
    "repetition": _repetition,
    "filters": _filters,
    "formats": _formats,
    "loops": _loops,
    "recursion": _recursion,
    "doubling": _doubling,
    "attributes": _attributes,
    "sources": _sources,
    "searches": _searches,
}


def template(kind: str, draw: random.Random) -> str:
    return KINDS[kind](draw)
