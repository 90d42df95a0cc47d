# SPDX-License-Identifier: Apache-2.0
"""Make data/jinja.json: what Jinja2, set up as transformers does, writes for small templates of our own.

    jinja.py            (needs jinja2; test_templates.py has the environment)

[{"template": ..., "vars": {...}, "text": ...} or {..., "error": true} or {..., "refused": words}]
"""
import json
import os

from test_templates import NOW, by_jinja2, environment

VARS = {
    "messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi\nthere"},
                 {"role": "assistant", "content": "né 日本 😀", "n": 3}, {"role": "user", "content": ""}],
    "d": {"b": 1, "a": [1, 2.5, None, True], "C": {"x": "y"}, "items": "key"},
    "l": [3, 1, 2], "words": ["Beta", "alpha", "Gamma", "alpha"], "s": "Hello World", "empty": "", "none": None, "zero": 0,
    "f": 1.0, "big": 1e20, "small": 1e-7, "neg": -7, "t": True, "no": False, "nested": [[1, [2, "x"]], {"k": {"z": [None]}}],
    "html": "<a href=\"x\">&'</a>", "lines": "one\n  two\n\nthree\n", "uni": "àéîõü ÀÉ ß ǆ", "odd": "tab\tnul\u0001del\u007fsep\u2028q'\"\\",
}

# Expressions: each is written by {{ }}.
EXPRESSIONS = """
1 + 2 * 3 - 4 / 2 | 7 // 2 | -7 // 2 | -7 % 3 | 7 % -3 | 7.5 // 2 | -7.5 % 2 | 2 ** 10 | 2 ** -1 | 2 ** 0.5 | 1 / 3 | 10 / 5 | -3 ** 2
2 ** 3 ** 2 | 1e3 | 1_000 + 0x1F + 0b101 + 0o17 | 1.5e-3 | 3.0 | 1e16 | 1e15 | 123456789012345680.0 | 0.1 + 0.2 | 1e-4 | 1e-5 | -0.0
'a' + 'b' | 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] | 'ab' * 3 | [1] + [2] | (1,) + (2,) | [0] * 3 | 'a' 'b' "c" | '\\n\\t\\x41\\u00e9\\U0001F600\\'\\"\\q' | "it's"
1 == 1.0 | true == 1 | 'a' == "a" | [1, 2] == [1, 2] | (1,) == [1] | {'a': 1} == {'a': 1.0} | none == none | 1 != 2 | 'a' < 'b' | [1, 2] < [1, 3] | 1 < 2 < 3 | 1 < 3 < 2 | 3 > 2 >= 2
'ell' in s | 'x' not in s | 2 in l | 'b' in d | 9 in d | none in [none] | 1 in (1, 2) | '' in '' | undefined_thing in l | 'a' in undefined_thing
not t | t and 'yes' | no and 'yes' | no or 'other' | empty or zero or none or 'last' | 1 and 0 or 3 | not no and t | 'x' if t | 'x' if no | 'x' if no else 'y' | 1 if no else 2 if no else 3
s[0] | s[-1] | s[2:5] | s[:3] | s[-3:] | s[::-1] | s[::2] | s[10:2] | s[99:] | s[1:-1] | s[-99:2] | l[0] | l[-1] | l[1:] | l[::-1] | l[5] | l[-5] | l[:-1] | l[0:2:1] | messages[2].content[3:5] | messages[2].content[-1]
d.b | d['b'] | d.a[1] | d.C.x | d['C']['x'] | d.missing | d['missing'] | d.items is callable | d['items'] | messages[1]['role'] | messages[0].content.strip() | nested[0][1][1] | nested.1.k.z | none.x | s.nothing | zero.x
d.get('b') | d.get('zz') | d.get('zz', 'def') | d.keys() | d.values() | d.items() | d.keys() | list | d.items() | list | d | length | d.copy() | {'a': 1, 'b': [2]} | {1: 2, 'x': none, true: 3} | {} | [] | () | (1,) | (1, 2)
s.upper() | s.lower() | s.title() | 'hello wORLD'.capitalize() | s.swapcase() | "they're bill's".title() | '  x '.strip() ~ '|' | '  x '.lstrip() ~ '|' | '  x '.rstrip() ~ '|' | 'xxaxx'.strip('x') | 'abcba'.lstrip('ab') | 'abcba'.rstrip('ab') | uni.upper() if no
s.split() | s.split('o') | s.split('o', 1) | ' a  b '.split() | ' a  b '.split(' ') | 'a,b,c'.rsplit(',', 1) | 'a b  c'.rsplit(none, 1) | 'a b  c d'.split(none, 2) | lines.splitlines() | lines.splitlines(true) | 'a=b=c'.partition('=') | 'a=b=c'.rpartition('=') | 'abc'.partition('x') | 'abc'.rpartition('x') | ''.split() | ''.split(',')
s.startswith('Hell') | s.startswith(('x', 'H')) | s.endswith('d') | s.endswith('') | s.startswith('World', 6) | s.find('o') | s.rfind('o') | s.find('zz') | s.index('W') | s.count('l') | s.count('') | s.replace('l', 'L') | s.replace('l', 'L', 1) | 'abc'.replace('', '-') | 'aaa'.replace('aa', 'b')
','.join(['a', 'b']) | ''.join([]) | 'abc'.join('xy') | 'a'.zfill(3) | '-5'.zfill(4) | 'a'.ljust(3) ~ '|' | 'a'.rjust(3, '.') | 'ab'.center(5, '*') | 'abc'.removeprefix('a') | 'abc'.removesuffix('c') | 'abc'.removesuffix('x')
'12'.isdigit() | ''.isdigit() | 'ab'.isalpha() | 'a1'.isalnum() | ' '.isspace() | 'AB'.isupper() | 'Ab'.islower() | 'x²'.isalnum() | '٣'.isdigit() | '½'.isnumeric() | 'é'.isalpha()
'%s and %d' % ('a', 5) | '%05.1f|%-4d|%+d|%x|%X|%o|%e|%g|%%' % (3.14159, 7, 7, 255, 255, 8, 12345.678, 0.0001) | '%r' % 'x' | '%s' % none | '%10s|' % 'r' | '%-10s|' % 'l' | '%.2s' % 'abc' | '%(a)s' % {'a': 1} | '%s' % [1, 2] | '%c' % 'x' | '%03d' % -5
'{} {}'.format(1, 'a') | '{1} {0}'.format('a', 'b') | '{x}'.format(x=5) | '{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c') | '{:.2f} {:5d} {:05d} {:,} {:x} {:%}'.format(3.14159, 42, 42, 1234567, 255, 0.5) | '{{}}'.format() | '{0[k]} {0.b}'.format(d) if no | '{!r}'.format('q') | '{:*^7}'.format('x') | '{:+} {: }'.format(1, 2)
s | length | l | length | d | count | empty | length | undefined_thing | length | messages | length | uni | length
s | upper | s | lower | 'foo BAR' | title | "it's a-b (c) [d]" | title | 'fOO' | capitalize | '  x ' | trim ~ '|' | 'xxaxx' | trim('x') | 5 | string ~ 'x' | none | string | [1, 'a'] | string | 3.0 | string | true | string | 5 | upper | none | trim
l | join | l | join(', ') | words | join('-') | messages | join('|', attribute='role') | 'abc' | join('.') | [] | join(',') | d | join(',') | [none, true, 1.0] | join(' ') | l | join(1)
undefined_thing | default('x') | none | default('x') | none | default('x', true) | empty | default('x', boolean=true) | empty | d('x') ~ '|' | undefined_thing | default ~ '|' | zero | default(5, true) | d.zz | default([])
l | first | l | last | [] | first | 'abc' | first | 'abc' | last | l | list | 'abc' | list | d | list | (1, 2) | list | l | reverse | list | 'abc' | reverse | l | sort | l | sort(reverse=true) | words | sort | words | sort(case_sensitive=true) | messages | sort(attribute='role') | map(attribute='role') | list
words | unique | list | words | map('upper') | list | words | map('length') | list | messages | map(attribute='role') | join(',') | messages | map(attribute='n', default=0) | list | [[1, 2], [3]] | map('first') | list | words | map('replace', 'a', '4') | list | none | map('upper') | list
messages | selectattr('role', 'equalto', 'user') | list | length | messages | selectattr('n') | list | messages | selectattr('n', 'defined') | map(attribute='role') | list | messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list | messages | rejectattr('n', 'defined') | list | length | messages | selectattr('role', 'in', ['system', 'assistant']) | list | length
[0, 1, '', 'a', none] | select | list | [0, 1, '', 'a', none] | reject | list | [1, 2, 3, 4] | select('even') | list | [1, 2, 3, 4] | select('gt', 2) | list | [1, 2, 3, 4] | reject('divisibleby', 2) | list | ['a', 1] | select('string') | list | l | select('odd') | first
d | dictsort | d | dictsort(reverse=true) | d | dictsort(true) | {'b': 2, 'A': 1} | dictsort(by='value') | d | items | list | {} | items | list | undefined_thing | items | list
'5' | int | '5.7' | int | 'x' | int | 'x' | int(7) | '0x1f' | int(base=16) | 5.9 | int | -5.9 | int | true | int | ' 42 ' | int | '1_0' | int | '' | int | none | int | '5.5' | float | 'x' | float | '1e3' | float | 'x' | float(2.5) | 3 | float | 'inf' | float | '0b11' | int(base=2)
-5 | abs | 5.5 | abs | neg | abs | 2.5 | round | 3.5 | round | 2.675 | round(2) | 2.7 | round | 7 | round | 42.55 | round(1, 'floor') | 42.55 | round(1, 'ceil') | 1234 | round(-2) | -2.5 | round | 1234.5 | round(-2)
l | sum | [1.5, 2] | sum | [] | sum | [[1], [2]] | map('first') | sum | l | min | l | max | words | min | words | max | messages | map(attribute='content') | map('length') | sum
html | escape | html | e | html | safe | 'a' | safe ~ '<' | ('<a>' | safe) + '<b>' | ('<' | escape) + '&' | html | replace('<', '[') | s | replace('o', '0', 1) | 5 | replace(5, 6)
lines | indent | lines | indent(2) | lines | indent(2, true) | lines | indent(2, blank=true) | lines | indent('> ', first=true) | '' | indent | 'a\\r\\nb' | indent(1)
'a long text that goes on and on for quite a bit' | truncate(20) | 'a long text that goes on' | truncate(20, true) | 'short' | truncate(20) | 'abcdefghij' | truncate(5, true, '..', 0) | 'ab' | center(6) ~ '|' | 'one two, three' | wordcount
[1, 2, 3, 4, 5] | batch(2) | list | [1, 2, 3] | batch(2, 0) | list | [1, 2, 3, 4, 5] | slice(2) | list | [1, 2, 3] | slice(2, 0) | list | messages | groupby('role') | map('first') | list | '%s-%s' | format(1, 'a') | '%(a)s' | format(a=3)
d | tojson | nested | tojson | s | tojson | odd | tojson | uni | tojson | uni | tojson(ensure_ascii=true) | messages[2] | tojson(ensure_ascii=true) | none | tojson | f | tojson | big | tojson | small | tojson | [] | tojson | {} | tojson | d | tojson(indent=2) | nested | tojson(indent=4) | [] | tojson(indent=2) | d | tojson(separators=(',', ':')) | {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) | html | tojson | (1, 2) | tojson | {1: 2} | tojson | {none: 1, true: 2} | tojson | d | tojson(indent='--')
odd | string | [odd] | string | [uni] | string | ["a'b", 'a"b', "a'\\"b"] | string | nested | string | d | string | [1.0, 1e20, 1e-7, -0.0] | string | big | small | f | neg | t | none | [true, none] | "\\u200b" | ["\\u200b\\u00ad\\u3000"]
t is true | no is false | t is boolean | 1 is boolean | 1 is integer | 1.0 is integer | 1.0 is float | t is integer | 1 is number | t is number | s is string | s is sequence | l is sequence | d is sequence | d is mapping | l is mapping | l is iterable | s is iterable | 1 is iterable | none is none | undefined_thing is defined | undefined_thing is undefined | d.zz is defined | d.b is defined | none is defined | undefined_thing is sequence | undefined_thing is iterable | none is iterable
3 is odd | 4 is even | 9 is divisibleby 3 | 9 is divisibleby(4) | 's' is in 'sun' | 1 is in l | 1 is eq 1 | 1 is equalto(2) | 2 is gt 1 | 1 is lt 1 | 1 is le 1 | 1 is ge 2 | 1 is ne 2 | l is sameas l | 'AB' is upper | 'ab' is lower | range is callable | s is callable | 1 is not none | not 1 is none | s is not string | s is string and t | l is sequence or no
range(3) | list | range(1, 4) | list | range(5, 0, -2) | list | range(0) | list | range(3) | length | range(3)[1] | dict(a=1, b=2) | dict([('a', 1)]) | dict({'a': 1}, b=2) | namespace(a=1).a | namespace().zz is defined | dict(a=1).a | strftime_now('%d %b %Y %H') | strftime_now("%Y-%m-%d")
""".strip("\n").split("\n")

TEMPLATES = r"""
{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.depth }} {% endfor %}
{% for m in messages %}{{ loop.previtem.role if not loop.first }}<{{ m.role }}>{{ loop.nextitem.role if loop.nextitem is defined }};{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}
{% for m in [] %}x{% else %}empty{% endfor %}{% for m in undefined_thing %}x{% else %}undef{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'abc' %}{{ c }}.{% endfor %}
{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for a, b in [[1, 2], 'xy'] %}{{ a }}{{ b }}{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% for i in [1, 2] %}{% for j in [3] %}{{ loop.depth }}{{ loop.index }}{% endfor %}{{ loop.depth }}{% endfor %}
{% for i in range(5) %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i // 2) }} {% endfor %}
{% for n in [{'v': 1, 'c': [{'v': 2, 'c': []}]}] recursive %}{{ n.v }}{{ loop.depth0 }}[{{ loop(n.c) }}]{% endfor %}
{% set x = 0 %}{% for i in range(3) %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.text = ns.text ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.text }}
{% set a, b = 1, 'two' %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}{% set (p, q) = [3, 4] %}{{ p }}{{ q }}
{% set x %}block {{ s }}{% set inner = 5 %}{% endset %}[{{ x }}]{{ inner is defined }}{{ x is string }}
{% set x | upper | replace('O', '0') %}hello world{% endset %}{{ x }}
{% filter upper %}a{{ s }}{% endfilter %}{% filter replace('a', 'b') | trim %} aa {% endfilter %}
{% macro f(a, b='B', c=none) %}({{ a }}{{ b }}{{ c }}){% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}{{ f(1, c=5) }}{{ f() }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}{{ f(2) | length }}
{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}
{% macro f(x) %}{{ x }}{{ y }}{% endmacro %}{% set y = 'late' %}{{ f(1) }}{{ f.name }}
{% macro wrap(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call wrap('b') %}in {{ s }}{% endcall %}
{% macro each(l) %}{% for x in l %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i) each([7, 8]) %}{{ i }}:{{ x }} {% endcall %}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% macro f(a, b) %}{{ a }}-{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 3, 'b': 4}) }}{{ f(1, **{'b': 5}) }}
{% macro f(x) %}{% set x = x + 1 %}{{ x }}{% endmacro %}{% set x = 10 %}{{ f(1) }}{{ x }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% if no %}a{% elif zero %}b{% elif s %}c{% else %}d{% endif %}{% if not s %}x{% else %}y{% endif %}{% if l | length > 2 and d.b == 1 %}z{% endif %}
{% raw %}{{ not }} {% done %}{% endraw %}|{%- raw -%}  x  {%- endraw -%}  |{% raw %} y {% endraw %}
{# a comment {{ x }} #}a{#- b -#} c {# d
e #}
f
  {% if true %}
    a
  {% endif %}
b {% if true %} c {% endif %}
  {{ s }}
	{%- if true -%}
 x
{%- endif +%}
 y
  {%+ if true %}z{% endif %}
  {{- s -}}
 .
a{%- set x = 1 -%} b {{ x }}
{% set x = 2 %}
{{ x }}

{% for i in range(2) %}
  {{ i }}
{% endfor %}
end
{{ "}}" }}{{ '%}' }}{{ {'a': {'b': 1}}.a.b }}{{ {'a':{}} }}{{ "{{" }}
{{- ' x ' }}{{ ' y ' -}}  z
{{ (1, 2,) }}{{ [1, 2,] }}{{ {'a': 1,} }}{{ f }}{{ (1) }}{{ () }}{{ 1, 2 }}
{% generation %}gen {{ s }}{% endgeneration %}{% set z = 1 %}
{% block title %}in block {{ s }}{% endblock title %}{% autoescape false %}{{ html }}{% endautoescape %}
{% print s %}{% print 1, 2 %}
{{ raise_exception('no ' ~ s) }}
{% if messages[0].role != 'user' %}{{ raise_exception("The first message must be the user's: " + messages[0].role) }}{% endif %}
{% set j = joiner(' | ') %}{% for i in [1, 2, 3] %}{{ j() }}{{ i }}{% endfor %}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{% set _ = c.reset() %}{{ c.current }}
{{ undefined_thing.x }}
{{ undefined_thing + 'a' }}
{{ 'a' + undefined_thing }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (2,) }}
{{ 1 < 'a' }}
{{ none | length }}
{{ 5 in 5 }}
{{ 1 / 0 }}
{{ s() }}
{{ undefined_thing() }}
{{ d.nothing() }}
{{ d.update({'a': 1}) }}
{% set _ = l.append(4) %}
{% set s.x = 1 %}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% set a, b = [1, 2, 3] %}
{{ s | nosuchfilter }}
{{ s is nosuchtest }}
{{ undefined_thing | tojson }}
{{ [undefined_thing] | tojson }}
{{ d.items() | tojson }}
{{ (l | map('string')) | length }}
{{ s.split('') }}
{{ s.index('zz') }}
{{ ','.join([1]) }}
{{ range(1000000) | length }}
{{ '%d' % 'x' }}
{{ '%s %s' % 'x' }}
{{ '{} {}'.format(1) }}
{{ d | sort(attribute='x') }}
{{ [1, 'a'] | sort }}
{{ -s }}
{{ l['a'] }}|{{ l.a }}|{{ s['a'] }}|{{ 5 .x }}
{{ s[::0] }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(x=2) }}
{{ 'a' is in }}
{{ 1 + }}
{% if %}{% endif %}
{% for %}{% endfor %}
{% for x in l %}
{% endfor %}
{% if x %}{% endfor %}
{{ s
{% set x = 1
{# never ends
{% nosuchtag %}
{{ 'abc }}
{{ 1 2 }}
{{ ] }}
{{ (1 }}
{{ a.b.c }}
{{ @ }}
{% break %}
{% set true = 1 %}
{% macro f(a=1, b) %}{% endmacro %}
{{ f(a=1, 2) }}
{% include 'x' %}
{{ d['a'][1] }}{{ d.a.1 }}{{ messages.0.role }}{{ messages[-1]['role'] }}
{% set content = messages[0].content | trim if messages[0].content is string else '' %}[{{ content }}]
{% set t = messages[1:] %}{{ t | length }}{{ t[0].role }}{% set last = messages | last %}{{ last.role }}{{ messages[-2:] | map(attribute='role') | list }}
{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}{% for m in messages | reverse %}{{ m.role[0] }}{{ loop.last }}{% endfor %}
{{ {'type': 'function', 'name': "x'y", 'p': {'q': [1, 2.0, true, none]}} }}
{%- for k, v in {'z': 1, 'y': {'x': 2}} | dictsort %}{{ k }}:{{ v | tojson }}{{ ',' if not loop.last }}{% endfor %}
{% set d2 = dict(d, **{'extra': 1}) %}{{ d2.extra }}{{ d2.b }}{{ d.extra is defined }}
{{ 'x' if none is none else 'y' }}{{ ('a' if no) ~ 'b' }}{{ (l if t else [])[0] }}
{{ s | upper | lower | title | replace(' ', '_') | length }}{{ (s | upper).lower() }}{{ s | upper is string }}{{ 'a' ~ s | upper }}{{ -1 | abs }}{{ 2 * 3 | string }}
{%- if messages[0]["role"] == "system" and messages[0]["content"] | trim | length > 0 %}{{ messages[0]["content"].strip().split(' ')[-1] }}{%- endif %}
{% set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ message.role }}{% endfor %}
{% set x = none %}{{ x is not none and x.y }}{{ x and x.y }}{{ (x or {}).get('a', 'fallback') }}
{% macro m(o) -%} {%- if o is mapping -%} {{ '{' }}{% for k in o %}{{ k }}{{ m(o[k]) }}{% endfor %}{{ '}' }} {%- elif o is sequence and o is not string -%} [{% for x in o %}{{ m(x) }},{% endfor %}] {%- else -%} {{ o | tojson }} {%- endif -%} {%- endmacro %}{{ m(d) }}{{ m(nested) }}
{{ [1, 2, 3] | map('string') | join('+') }}{{ ['b', 'a'] | sort | join }}{{ [[2, 'b'], [1, 'a']] | sort }}{{ words | map('lower') | unique | sort | list }}
""".strip("\n")


def cases():
    for line in EXPRESSIONS:
        # Too ambiguous to part by the bar: Jinja2 says what a filter is.
        parts = line.split(" | ")
        at = 0
        while at < len(parts):
            best = 1
            for k in range(2, len(parts) - at + 1):
                word = parts[at + k - 1].split("(")[0].split(" ")[0].split(".")[0].split("~")[0]
                if word in ENV.filters and parts[at + k - 1] != "d.b":
                    best = k
                else:
                    break
            yield "{{ " + " | ".join(parts[at:at + best]) + " }}"
            at += best
    yield from TEMPLATES.split("\n")
    yield TEMPLATES
    for block in BLOCKS:
        yield block


BLOCKS = [
    "  {% if true %}\n    a\n  {% endif %}\nb {% if true %} c {% endif %}\n  {{ s }}\n", "\t{%- if true -%}\n x\n{%- endif +%}\n y\n  {%+ if true %}z{% endif %}\n",
    "a\n\n\n", "a\r\nb\rc\n", "\n{% set x = 1 %}\n\n{{ x }}\n", "{% if t %}\n{% endif %}\n\nx", "x {# c #}\n y\n {# d #}\nz", "{% for i in l %}\n  {{ i }}\n{% endfor %}\nend\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\n y", "a\n  {% raw %} {% endraw %}", "  {{- s }}\n  {{ s -}}\n  .", "{%- if t %}  a  {%- else %}b{%- endif %}\n\n  c",
    "{{ s }}\n{% if t %} x\n{% endif %}", "a {% if t %}\nb\n {% endif %} c\n", "{% if t -%}\n\n  x {% endif %}", "{% if t +%}\nx{% endif %}", "{{ s }}  {%- if t %}y{% endif %}",
    "{#- c -#}\n\n a", "{# a #}{# b #}\n{% set x = 1 %}\n{# c #}\n{{ x }}", "\u00a0{%- if t -%}\u2003x{% endif %}\u00a0{% if t %}y{% endif %}",
    "{% for m in messages -%}\n{{ '<|' + m.role + '|>\\n' + m.content | trim + '<|end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}\n",
    "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'user' %}\n        {{ 'U: ' + m['content'] }}\n    {% elif m.role == \"assistant\" %}\n        {{ 'A: ' ~ m.content ~ eos_token }}\n    {% endif %}\n{% endfor %}\n",
    "", "\n", "x", "{{ '' }}", "{{'a'}}{{'b'}}", "{%if t%}x{%endif%}", "{{\ns\n}}", "{% set x = [\n  1,\n  2\n] %}\n{{ x }}", "{{ s }}{", "{ {", "%} }} #}", "{{ '{#' }}", "{% set x='%}' %}{{x}}",
]
ENV = environment()


def main():
    out, seen = [], set()
    for text in cases():
        if text in seen:
            continue
        seen.add(text)
        row = {"template": text}
        try:
            template = ENV.from_string(text)
        except Exception:
            row["error"] = True
        else:
            got = by_jinja2(template, {**VARS, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True})
            if "error" in got:
                row["error"] = True
            else:
                row.update(got)
        out.append(row)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "jinja.json")
    with open(path, "w", encoding="utf-8") as f:
        f.write('{"now": %d, "vars": %s,\n "cases": [\n' % (NOW, json.dumps({**VARS, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True})))
        f.write(",\n".join("  " + json.dumps(r) for r in out) + "\n]}\n")
    print("%d cases, %d errors, %d refused" % (len(out), sum("error" in r for r in out), sum("refused" in r for r in out)))


if __name__ == "__main__":
    main()
