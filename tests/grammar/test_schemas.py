# SPDX-License-Identifier: Apache-2.0
"""Random JSON schemas against PyPI's jsonschema: what the schema's grammar derives is valid, a valid instance
made from the schema is accepted, and a changed instance that jsonschema refuses is refused.  Random regular
expressions against Python's re: the same texts match.  The same schemas, and ones with keywords in them that are not
served, followed as a tool's are: objects always, and valid ones where the whole schema is served.

    PRESSD_GRAMMAR_TEXTS   the built tests/grammar/grammar_texts (default beside PRESSD_BIN's build)
    PRESSD_TEST_LONG=1     10,000 schemas instead of 1,000
    PRESSD_TEST_SEED       which ones

Ends in `N passed, N failed`.
"""

import calendar
import decimal
import ipaddress
import json
import os
import random
import re
import subprocess
import sys

import jsonschema

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NAMES = ["a", "name", "é", 'q"uote', "back\\slash", "x y", "line\nbreak", "0", "longer_name_of_a_member"]
TYPES = ["string", "integer", "number", "boolean", "null", "array", "object"]
TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)  # RFC 3339
PROPER = jsonschema.FormatChecker()


@PROPER.checks("date", raises=ValueError)
def is_date(v):
    if not isinstance(v, str):
        return True
    y, m, d = (int(x) for x in v.split("-"))
    return len(v) == 10 and 1 <= m <= 12 and 1 <= d <= calendar.monthrange(y, m)[1]


@PROPER.checks("time", raises=ValueError)
def is_time(v):
    return not isinstance(v, str) or TIME.fullmatch(v) is not None


@PROPER.checks("date-time", raises=ValueError)
def is_date_time(v):
    return not isinstance(v, str) or (is_date(v[:10]) and v[10] == "T" and is_time(v[11:]))


@PROPER.checks("ipv6", raises=ValueError)
def is_ipv6(v):
    return not isinstance(v, str) or bool(ipaddress.IPv6Address(v))


FORMATS = {  # as their RFCs have them: 3339 A, 1123, 3986, 6901, relative pointers, 4648
    "duration": r"P(?!$)(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)?(T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))?|P\d+W",
    "hostname": r"(?=.{1,253}$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:(//([\w.~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)?([\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
           r"(\?([\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?(#([\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    "json-pointer": r"(/([^~/]|~[01])*)*", "relative-json-pointer": r"(0|[1-9]\d*)(#|(/([^~/]|~[01])*)*)",
    "byte": r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?",
}
for _name, _pattern in FORMATS.items():
    PROPER.checks(_name)(lambda v, p=re.compile(_pattern, re.ASCII | re.DOTALL): not isinstance(v, str) or p.fullmatch(v) is not None)

# ECMA's pattern -> Python's, with Python's \s and $ made ECMA's: jsonschema asks Python
PYTHON = {}


def matches(pattern, text):
    return re.search(PYTHON.get(pattern, pattern), text, re.ASCII) is not None


def pattern_check(_, pattern, v, schema):
    if isinstance(v, str) and not matches(pattern, v):
        yield jsonschema.ValidationError(f"{v!r} does not match {pattern!r}")


def pattern_properties(validator, patterns, v, schema):
    for pattern, s in patterns.items() if isinstance(v, dict) else ():
        for k in v:
            if matches(pattern, k):
                yield from validator.descend(v[k], s, path=k)


def additional(validator, more, v, schema):
    for k in v if isinstance(v, dict) else ():
        if k not in schema.get("properties", {}) and not any(matches(p, k) for p in schema.get("patternProperties", {})):
            yield from validator.descend(v[k], more, path=k)


def multiple_of(_, m, v, schema):  # of decimals, not of doubles
    if isinstance(v, (int, float)) and not isinstance(v, bool) and decimal.Decimal(repr(v)) % decimal.Decimal(repr(m)):
        yield jsonschema.ValidationError(f"{v!r} is no multiple of {m!r}")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {
    "pattern": pattern_check, "patternProperties": pattern_properties, "additionalProperties": additional, "multipleOf": multiple_of})
STRING, OBJECT = {"type": "string"}, {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
# schema, texts that fit, texts that do not
CASES = [
    (STRING, ['""', r'"\ud7ff"', r'"\uE000"', '"é"'], [r'"\ud800"', r'"\uDfff"', '"\x1f"', '"', "a"]),
    ({"type": "string", "pattern": "a|^b$"}, ['"xay"', '"b"'], ['"xb"', '"bx"', '""']),
    ({"type": "string", "pattern": "^[\"\\\\\n\u001f]{2}$"}, [r'"\"\\"', r'"\n\u001f"'], ['"a"', r'"\u0022\u0022"', '""""']),
    ({"type": "string", "pattern": "^(?:[^a]|\\d{2,3}?)$"}, ['"b"', '"é"', '"12"', '"123"', r'"\n"'], ['"a"', '"1234"', '""']),
    ({"type": "string", "pattern": "^a+b$|^c*$", "maxLength": 4, "minLength": 3}, ['"aab"', '"aaab"', '"cccc"'], ['"ab"', '"aaaab"', '""', '"ccccc"']),
    ({"type": "string", "pattern": "^.$"}, ['"a"', '"😀"'], [r'"\n"', '"\u2028"', '"ab"']),
    ({"type": "number", "minimum": 0}, ["0", "0.0", "7.25", "123456789012.5"], ["-0", "-0.5", "-1"]),
    ({"type": "number", "exclusiveMinimum": -1.5, "maximum": 0.25}, ["-1.4", "-1.49999", "-0.1", "0", "0.25", "0.250", "0.2"],
     ["-1.5", "-1.50", "-1.6", "-2", "0.251", "0.3", "1"]),
    ({"type": "number", "minimum": 99.5, "exclusiveMaximum": 1000}, ["99.5", "99.6", "100", "999.999"], ["99.4", "99", "1000", "1000.1"]),
    ({"type": "number", "minimum": 0.1, "maximum": 0.1}, ["0.1", "0.10"], ["0", "0.11", "0.2"]),
    ({"type": "number", "multipleOf": 0.01}, ["0", "-1.25", "3.1"], ["0.001", "1.255"]),
    ({"type": "integer", "multipleOf": 7, "minimum": -14}, ["-14", "-7", "0", "7", "700", "1001"], ["-21", "1", "15", "1000"]),
    ({"type": "integer", "multipleOf": 250, "maximum": 1000}, ["-250", "0", "1000", "-123456750"], ["1250", "100", "-125"]),
    ({"type": "integer", "minimum": 0.5, "maximum": 3.5}, ["1", "3"], ["0", "4"]),
    ({"type": "integer", "format": "uint8"}, ["0", "255"], ["-1", "256"]),
    ({"type": "object", "properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     ['{"ab":null}', '{"ab":null,"b":1}', '{"a":1}', '{"abc":1}', '{"":1}', "{}"], ['{"ab":1}', '{"b":null}', '{"a":1,"ab":null}', r'{"\u0061b":1}']),
    ({"type": "object", "properties": {"a": True, "b": True, "c": True}, "minProperties": 2, "maxProperties": 2},
     ['{"a":1,"b":2}', '{"b":1,"c":2}'], ["{}", '{"a":1}', '{"a":1,"b":2,"c":3}']),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2}, ['{"a":1}', '{"a":1,"b":2}'],
     ["{}", '{"a":1,"b":2,"c":3}']),
    ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}, ['{"xa":1}', "{}"], ['{"a":1}', '{"x":null}']),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"ab":1}'], ['{"abc":1}']),
    ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29", "1999-01-31", "2023-11-30"],
     ["2023-02-29", "1900-02-29", "2023-04-31", "2023-02-30", "2023-13-01", "2023-00-10", "2023-01-00", "2023-01-32"]),
    ({"type": "integer"}, ["0", "-1", "999999999999999", "-0"], ["01", "1.0", "1e3", "+1"]),
    ({"type": "integer", "minimum": -12, "maximum": 105}, ["-12", "-1", "0", "99", "105"], ["-13", "106", "-120", "-0", "1000"]),
    ({"type": "number"}, ["0", "-0.5", "1e5", "1.25E-3"], [".5", "1.", "01", "1e", "NaN"]),
    (OBJECT, ['{"a":null}', '{ "a" : null }'], ["{}", '{"a":null,}', '{"a":null,"b":1}', '{"a":null,"a":null}']),
    ({"$ref": "#/$defs/a~1b/anyOf/1", "$defs": {"a/b": {"anyOf": [{"const": 1}, {"const": 2}]}}}, ["2"], ["1"]),
    ({"type": ["string", "null"], "maxLength": 1}, ["null", '"a"'], ['"ab"', "true"]),
    ({"oneOf": [{"type": "integer"}, STRING]}, ["1", '"1"'], ["null"]),
    ({"allOf": [OBJECT, {"properties": {"b": {"const": 1}}}]}, ['{"a":null}', '{"a":null,"b":1}'], ['{"b":1}']),
    ({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}, ['{"next":{"next":null}}', "{}"], ["null"]),
]
DEEP = {}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}
NESTED = "a"
for _ in range(8):
    NESTED = f"(({NESTED}){{0,99}}){{9,}}"
TWICE = {"$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}], "type": "object"}}, "$ref": "#/$defs/x"}
BOMB = STRING
for _ in range(8):
    BOMB = {"type": "array", "items": BOMB, "minItems": 50, "maxItems": 10000}
# schema, path that the refusal names
REFUSED = [
    ({"type": "integer", "minLength": 3}, "schema.minLength"), ({"type": "string", "properties": {}}, "schema.properties"),
    ({"enum": [1], "minimum": 0}, "schema.minimum"), ({"type": "array", "items": {"type": "int"}}, "schema.items"),
    ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "schema"), ({"minimum": 0}, "schema.minimum"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema.oneOf[1]"), ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "schema.oneOf[1]"),
    ({"oneOf": [OBJECT, {"type": "object", "properties": {"b": True}}]}, "schema.oneOf[1]"),
    ({"$ref": "#"}, "schema"), ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "schema.anyOf[1]"), ({"$ref": "#/$defs/x"}, "schema"),
    ({"type": "object", "properties": {"a": {"$ref": "http://x"}}}, "schema.properties.a"), ({"not": {}}, "schema.not"),
    ({"$ref": "#/$defs/x", "type": "string", "$defs": {"x": {"type": ["string", "null"]}}}, "schema"),
    ({"allOf": [OBJECT, {"properties": {"a": STRING}}]}, "schema.allOf"), ({"allOf": [STRING, OBJECT]}, "schema.allOf"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "schema"), (DEEP, "schema"), (TWICE, "schema.allOf"), (BOMB, "schema"),
    ({"enum": ["x" * 100] * 20000}, "schema"),
    ({"type": "integer", "multipleOf": 101}, "schema.multipleOf"), ({"type": "number", "multipleOf": 0.3}, "schema.multipleOf"),
    ({"type": "integer", "multipleOf": 0}, "schema.multipleOf"), ({"type": "number", "minimum": "0"}, "schema.minimum"),
    ({"type": "number", "maximum": -1e16}, "schema.maximum"), ({"type": "integer", "pattern": "a"}, "schema.pattern"),
    ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"), ({"type": "object", "minProperties": 2}, "schema.minProperties"),
    ({"type": "object", "propertyNames": {"type": "integer"}}, "schema.propertyNames"),
    ({"type": "object", "patternProperties": {"a": {}, "b": {}}}, "schema.patternProperties"),
    ({"type": "string", "format": "regex"}, "schema.format"), ({"type": "string", "format": "uuid", "maxLength": 9}, "schema.format"),
    ({"type": "string", "pattern": "a", "format": "date"}, "schema"), ({"type": "string", "pattern": "^a*b*$", "maxLength": 3}, "schema.pattern"),
] + [({"type": "string", "pattern": p}, "schema.pattern") for p in (
    "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", "(?i)a", "(a)\\1", "\\bx", "\\B", "\\p{L}", "\\Ax", "x\\Z", "a^b", "a$b", "(^a)+", "a**", "a++", "*a", "a|+", "{2}", "a{",
    "a{,2}", "a{2", "a{3,2}", "a{10001}", "[", "[a", "[]", "[]a]", "[b-a]", "[[:alpha:]]", "[\\d-z]", "(", "(a", "a)", "(?<n", "\\", "\\q", "\\xg0", "\\ud800", "[^\\s\\S]",
    "(" * 100 + ")" * 100, "a" * 8193, "a?" * 4096)] + [({"type": "string", "pattern": p}, "schema") for p in (
    "(((((a{99}){99}){99}){99}){99})", "(.{9999}){9999}", "((((a?){999}){999}){999}){999}", NESTED)]
REFUSAL_US = 50_000 * int(os.environ.get("PRESSD_TEST_SLOW", "4"))  # 50 ms alone; a neighbour may take the core
KNOWN = ("no integer is in the range", "one part of it alone varies", "no text of the lengths", "tell them apart", "two parts of allOf", "allOf is served", "allow no other type", "leads back to itself")


class Gen:
    """A schema and, beside it, how to make instances."""

    def __init__(self, r):
        self.r, self.defs, self.makes = r, {}, {}

    def word(self):
        return "".join(self.r.choice('ab"\\/é\n€😀 {}[]:,0') for _ in range(self.r.randrange(6)))

    def value(self, depth=0):
        k = self.r.randrange(5 if depth > 1 else 7)
        if k < 5:
            return [self.word(), self.r.randrange(-50, 50), self.r.choice([0.5, -1.25, 3.0]), self.r.random() < 0.5, None][k]
        if k == 5:
            return [self.value(depth + 1) for _ in range(self.r.randrange(3))]
        return {n: self.value(depth + 1) for n in self.r.sample(NAMES, self.r.randrange(3))}

    def schema(self, depth=0):
        r = self.r
        kinds = ["string", "pattern", "pattern", "integer", "number", "number", "boolean", "null", "enum", "const", "format", "types"]
        if depth < 3:
            kinds += ["object"] * 5 + ["array"] * 3 + ["anyOf", "oneOf", "tagged", "ref", "allOf", "tuple", "open", "map", "any", "others", "matching"]
        s = getattr(self, "make_" + r.choice(kinds))(depth)
        if r.random() < 0.1 and isinstance(s, dict):
            s = {"title": "T", "description": 'd "', **s}
        return s

    def make_any(self, depth):
        return self.r.choice([True, {}])

    def make_string(self, depth):
        s = {"type": "string"}
        lo = self.r.randrange(4)
        if self.r.random() < 0.4:
            s["minLength"] = lo
        if self.r.random() < 0.4:
            s["maxLength"] = lo + self.r.randrange(6)
        return s

    def make_integer(self, depth):
        s = {"type": "integer"}
        if self.r.random() < 0.3:
            s["multipleOf"] = self.r.choice([1, 2, 3, 5, 7, 10, 12, 64, 99, 100, 300, 1000])
        lo = self.r.choice([0, 1, -1, 9, -1000, 95, 12345, -7])
        if self.r.random() < 0.5:
            s[self.r.choice(["minimum", "exclusiveMinimum"])] = lo
        if self.r.random() < 0.5:
            s[self.r.choice(["maximum", "exclusiveMaximum"])] = lo + 2 + self.r.choice([0, 1, 5, 10, 99, 100, 1234, 999999])
        return s

    def make_number(self, depth):
        r, s = self.r, {"type": "number"}
        lo = r.choice([0, 0.0, 1, -1, 0.5, -0.25, 12.125, -99.9, 1e-3, 123456.75, -1e6])
        if r.random() < 0.4:
            s[r.choice(["minimum", "exclusiveMinimum"])] = lo
        if r.random() < 0.4:
            s[r.choice(["maximum", "exclusiveMaximum"])] = lo + r.choice([0.5, 1, 0.125, 0.01, 10, 99.5, 12345])
        if r.random() < 0.2:
            s["multipleOf"] = r.choice([1, 2, 5, 30, 0.1, 0.01])
        return s

    # ---- a pattern: ECMA's text, Python's text, and how to make a match ----

    def atom(self, depth):
        r = self.r
        k = r.randrange(9 if depth < 3 else 7)
        if k < 3:
            c = r.choice('ab0- "\\/é€😀.+*()[]{}|^$')
            e = "\\" + c if not c.isalnum() and ord(c) < 128 and c not in ' "' else c
            return e, re.escape(c), lambda: c
        if k == 3:
            e = r.choice(["\\n", "\\t", "\\x1f", "\\u00e9", "\\u20AC", "\\/"])
            return e, e, lambda: json.loads('"' + e.replace("\\x", "\\u00") + '"')
        if k == 4:
            e, pool = r.choice([(".", "a.€"), ("\\d", "059"), ("\\w", "aZ_0"), ("\\s", " \t"), ("\\D", "a €"), ("\\W", " €-"), ("\\S", "a0€")])
            return e, "[^\n\r\u2028\u2029]" if e == "." else e, lambda: r.choice(pool)
        if k < 7:
            e, pool = r.choice([("[a-c]", "abc"), ("[^a-c]", "d€\n"), ("[\\w.-]", "a.-_"), ("[^\\s\\d]", "a€"), ("[0-9a-fA-F]", "0fA"), ('["\\\\\\n]', '"\\\n'),
                                ("[\\]\\[^-]", "[]^-"), ("[é-€]", "é€"), ("[^\\W_]", "a0"), ("[ -~]", "a\"\\ ")])
            return e, e, lambda: r.choice(pool)
        e, p, make = self.choices(depth + 1)
        opening = r.choice(["(", "(?:", f"(?<n{len(PYTHON)}_{r.randrange(10**9)}>"])
        return opening + e + ")", "(?:" + p + ")", make

    def sequence(self, depth):
        r, parts = self.r, []
        for _ in range(r.randrange(1, 4)):
            e, p, make = self.atom(depth)
            q = r.choice(["", "", "", "?", "*", "+", "{2}", "{1,}", "{0,3}", "*?", "{1,2}?"])
            if len(e) > 1 and e[0] == "(":  # Python's own matcher takes forever over (a*)*
                q = r.choice(["", "?", "{2}"])
            lo, hi = {"": (1, 1), "?": (0, 1), "*": (0, 3), "+": (1, 3), "{2}": (2, 2), "{1,}": (1, 3), "{0,3}": (0, 3), "*?": (0, 3), "{1,2}?": (1, 2)}[q]
            parts.append((e + q, p + q, lambda make=make, lo=lo, hi=hi: "".join(make() for _ in range(r.randint(lo, hi)))))
        return "".join(x[0] for x in parts), "".join(x[1] for x in parts), lambda: "".join(x[2]() for x in parts)

    def choices(self, depth):
        many = [self.sequence(depth) for _ in range(self.r.choice([1, 1, 2, 3]))]
        return "|".join(x[0] for x in many), "|".join(x[1] for x in many), lambda: self.r.choice(many)[2]()

    def pattern(self):
        """A pattern with anchors or without, and how to make texts that it is found in."""
        many = []
        for _ in range(self.r.choice([1, 1, 1, 2])):
            e, p, make = self.sequence(0)
            left, right = self.r.random() < 0.7, self.r.random() < 0.7
            many.append(("^" * left + e + "$" * right, "^" * left + p + "\\Z" * right,
                         lambda make=make, left=left, right=right: ("" if left else self.word()) + make() + ("" if right else self.word())))
        e = "|".join(x[0] for x in many)
        PYTHON[e] = "|".join(x[1] for x in many)
        self.makes[e] = lambda: self.r.choice(many)[2]()
        return e

    def make_pattern(self, depth):
        s = {"type": "string", "pattern": self.pattern()}
        if self.r.random() < 0.2:
            s["maxLength"] = self.r.randrange(1, 9)
        if self.r.random() < 0.1:
            s["minLength"] = self.r.randrange(3)
        return s

    def make_others(self, depth):
        names = self.r.sample(NAMES, self.r.randrange(1, 4))
        s = {"type": "object", "properties": {n: self.schema(depth + 2) for n in names}, "additionalProperties": self.schema(depth + 2)}
        if self.r.random() < 0.5:
            s["required"] = self.r.sample(names, self.r.randrange(len(names) + 1))
        if self.r.random() < 0.4:
            s["minProperties"] = self.r.randrange(len(names) + 2)
        if self.r.random() < 0.4:
            s["maxProperties"] = s.get("minProperties", len(s.get("required", []))) + self.r.randrange(3)
        return s

    def make_matching(self, depth):
        if self.r.random() < 0.5:
            return {"type": "object", "patternProperties": {self.pattern(): self.schema(depth + 2)}, "additionalProperties": False}
        names = self.r.choice([{"pattern": self.pattern()}, {"minLength": 1, "maxLength": 3}, {"enum": ["a", "b", "é"]}])
        return {"type": "object", "propertyNames": names, "additionalProperties": self.schema(depth + 2)}

    def make_boolean(self, depth):
        return {"type": "boolean"}

    def make_null(self, depth):
        return {"type": "null"}

    def make_enum(self, depth):
        return {"enum": [self.value() for _ in range(self.r.randrange(1, 5))]}

    def make_const(self, depth):
        return {"const": self.value()}

    def make_format(self, depth):
        return {"type": "string", "format": self.r.choice(["date", "uuid", "ipv4", "email", "time", "date-time", "ipv6", *FORMATS])}

    def make_types(self, depth):
        return {"type": self.r.sample(TYPES, self.r.randrange(1, 4))}

    def make_object(self, depth):
        names = self.r.sample(NAMES, self.r.randrange(0, 5))
        s = {"type": "object", "properties": {n: self.schema(depth + 1) for n in names}}
        if names:
            s["required"] = self.r.sample(names, self.r.randrange(len(names) + 1))
        if self.r.random() < 0.7 and names:
            s["additionalProperties"] = False
        return s

    def make_open(self, depth):
        return {"type": "object"}

    def make_map(self, depth):
        return {"type": "object", "additionalProperties": self.schema(depth + 1)}

    def make_array(self, depth):
        s = {"type": "array", "items": self.schema(depth + 1)}
        lo = self.r.randrange(3)
        if self.r.random() < 0.4:
            s["minItems"] = lo
        if self.r.random() < 0.4:
            s["maxItems"] = lo + self.r.randrange(3)
        return s

    def make_tuple(self, depth):
        n = self.r.randrange(1, 4)
        return {"type": "array", "prefixItems": [self.schema(depth + 1) for _ in range(n)], "items": False, "minItems": n}

    def make_anyOf(self, depth):
        return {"anyOf": [self.schema(depth + 1) for _ in range(self.r.randrange(1, 4))]}

    def make_oneOf(self, depth):
        return {"oneOf": [self.schema(depth + 1) for _ in range(self.r.randrange(1, 4))]}

    def make_tagged(self, depth):
        return {"oneOf": [{"type": "object", "properties": {"kind": {"const": k}, "v": self.schema(depth + 2)},
                           "required": ["kind"], "additionalProperties": False} for k in self.r.sample(["a", "b", 1, None], 2)]}

    def make_ref(self, depth):
        name = self.r.choice(["plain", "a/b", "t~x"])
        if name not in self.defs:
            self.defs[name] = True
            self.defs[name] = self.schema(depth + 1)
        s = {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1")}
        if self.r.random() < 0.1:
            s["type"] = self.r.choice(TYPES)
        return s

    def make_allOf(self, depth):
        parts = [self.make_object(depth + 1) for _ in range(self.r.randrange(1, 3))]
        for p in parts:
            if self.r.random() < 0.8:
                p.pop("additionalProperties", None)
        return {"allOf": parts}

    # ---- an instance, in the grammar's member order; raises ValueError where it does not know ----

    def instance(self, s, depth=0):
        r = self.r
        if depth > 12:
            raise ValueError("too deep")
        if s is True or not set(s) - {"title", "description", "$defs"}:
            return self.value()
        if "$ref" in s:
            return self.instance(self.defs[s["$ref"][8:].replace("~1", "/").replace("~0", "~")], depth + 1)
        if "const" in s:
            return s["const"]
        if "enum" in s:
            return r.choice(s["enum"])
        for k in ("anyOf", "oneOf"):
            if k in s:
                return self.instance(r.choice(s[k]), depth + 1)
        if "allOf" in s:
            out, parts = {}, s["allOf"]
            must = {n for p in parts for n in p.get("required", [])}
            for p in parts:
                for n, one in p["properties"].items():
                    if n not in out and (n in must or r.random() < 0.5):
                        out[n] = self.instance(one, depth + 1)
            order = list(dict.fromkeys(n for p in parts for n in p["properties"]))
            return {n: out[n] for n in order if n in out}
        t = s["type"] if isinstance(s["type"], str) else r.choice(s["type"])
        if t == "string":
            f = s.get("format")
            if f:
                return {"date": r.choice(["2024-02-29", "1999-12-31", "2000-02-29", "2023-04-30"]), "ipv4": "255.0.19.7",
                        "uuid": "01234567-89ab-cdef-0123-456789abcdef", "email": "a_b.c@x.org", "time": "23:59:59Z",
                        "date-time": "2024-02-29T00:00:00.5+01:00", "ipv6": r.choice(["::1", "1:2::3", "1:2:3:4:5:6:7:8", "a::"]),
                        "duration": r.choice(["P1Y", "PT5M", "P2W", "P1DT1H30M"]), "hostname": "a-b.example.org", "byte": r.choice(["", "YQ==", "YWI="]),
                        "uri": r.choice(["https://x.org/a?b=c#d", "ftp://h:21/"]), "json-pointer": r.choice(["", "/a~1b/0"]),
                        "relative-json-pointer": r.choice(["0#", "1/a"])}[f]
            if "pattern" in s:
                return self.makes[s["pattern"]]()
            n = r.randint(s.get("minLength", 0), s.get("maxLength", s.get("minLength", 0) + 4))
            return "".join(r.choice('ab"\\é€😀\n ') for _ in range(n))
        if t == "integer":
            lo = max([s[k] + d for k, d in (("minimum", 0), ("exclusiveMinimum", 1)) if k in s], default=-10**9)
            hi = min([s[k] - d for k, d in (("maximum", 0), ("exclusiveMaximum", 1)) if k in s], default=max(lo, 10**9))
            m = s.get("multipleOf", 1)
            return r.choice([lo, hi, r.randint(lo, hi)]) // m * m
        if t == "number":
            lo = next((s[k] for k in ("minimum", "exclusiveMinimum") if k in s), None)
            hi = next((s[k] for k in ("maximum", "exclusiveMaximum") if k in s), None)
            if lo is None and hi is None and "multipleOf" not in s:
                return r.choice([0, -3, 1.5, -0.25, 1e20, 123456.789])
            lo, hi = hi - 100 if lo is None and hi is not None else lo or 0, hi if hi is not None else (lo or 0) + 1000
            v = r.choice([lo, hi, round(r.uniform(lo, hi), r.randrange(5))])
            m = s.get("multipleOf")
            v = float(decimal.Decimal(repr(v)) // decimal.Decimal(repr(m)) * decimal.Decimal(repr(m))) if m else v
            if m and v == int(v):
                v = int(v)
            if v == 0:
                v = 0
            return v
        if t in ("boolean", "null"):
            return None if t == "null" else r.random() < 0.5
        if t == "array":
            if "prefixItems" in s:
                return [self.instance(x, depth + 1) for x in s["prefixItems"]]
            lo = s.get("minItems", 0)
            n = r.randint(lo, s.get("maxItems", lo + 2)) if depth < 6 else lo
            return [self.instance(s.get("items", True), depth + 1) for _ in range(n)]
        props = s.get("properties")
        if "patternProperties" in s:
            (pattern, one), = s["patternProperties"].items()
            return {self.makes[pattern](): self.instance(one, depth + 1) for _ in range(r.randrange(3))}
        if "propertyNames" in s:
            names = {"type": "string", **s["propertyNames"]}
            return {self.instance(names, depth + 1): self.instance(s["additionalProperties"], depth + 1) for _ in range(r.randrange(3))}
        if props and isinstance(s.get("additionalProperties"), dict):
            must = s.get("required", [])
            out = {n: self.instance(one, depth + 1) for n, one in props.items() if n in must or r.random() < 0.5}
            extra = [n for n in [*NAMES, self.word(), "names"] if n not in props]
            if s.get("minProperties", 0) > len(out) + 1:  # further ones are not told apart
                raise ValueError("not counted")
            return {**out, **{n: self.instance(s["additionalProperties"], depth + 1) for n in r.sample(extra, r.randrange(3))}}
        if not props:
            more = s.get("additionalProperties", True)
            if "properties" in s and "additionalProperties" in s and more is False:
                return {}
            return {n: self.instance(more, depth + 1) for n in r.sample(NAMES, r.randrange(3))}
        must = s.get("required", [])
        return {n: self.instance(one, depth + 1) for n, one in props.items() if n in must or r.random() < 0.5}

    def mutate(self, v):
        """The value with something in it changed."""
        r = self.r
        if isinstance(v, dict) and v and r.random() < 0.8:
            k, out = r.choice(list(v)), dict(v)
            how = r.randrange(4)
            if how == 0:
                del out[k]
            elif how == 1:
                out["other"] = self.value()
            else:
                out[k] = self.mutate(out[k])
            return out
        if isinstance(v, list) and v and r.random() < 0.8:
            i, out = r.randrange(len(v)), list(v)
            how = r.randrange(4)
            if how == 0:
                del out[i]
            elif how == 1:
                out.insert(i, self.mutate(out[i]))
            else:
                out[i] = self.mutate(out[i])
            return out
        if isinstance(v, str) and r.random() < 0.6:
            return r.choice([v + "x", v[1:], v * 3, v.replace("0", "9"), v.replace("2", "3")])
        if isinstance(v, int) and not isinstance(v, bool) and r.random() < 0.6:
            return r.choice([v + 1, v - 1, -v, v * 10, v + 0.5])
        return self.value()


def dump(v, tight):  # a name or a constant has one spelling: no \\u where none is needed, no blanks inside
    return json.dumps(v, ensure_ascii=False, separators=(",", ":") if tight else (", ", ": "))


JUNK = [("pattern", "^a+$"), ("format", "uri"), ("not", {"type": "null"}), ("additionalProperties", True), ("minimum", 0.5),
        ("uniqueItems", True), ("patternProperties", {}), ("type", "any"), ("if", {}), ("required", ["nobody"]), ("maxLength", -1), ("enum", [])]


def with_junk(r, s):
    """Here and there a keyword that is not served, or makes no sense."""
    if isinstance(s, list):
        return [with_junk(r, x) for x in s]
    if not isinstance(s, dict):
        return s
    s = {k: with_junk(r, v) for k, v in s.items()}
    if "type" in s and r.random() < 0.3:
        s.update([r.choice(JUNK)])
    return s


def main():
    tool = os.environ.get("PRESSD_GRAMMAR_TEXTS")
    if not tool:
        build = os.path.dirname(os.path.dirname(os.environ.get("PRESSD_BIN") or os.path.join(ROOT, "build/server/pressd")))
        tool = os.path.join(build, "tests/grammar/grammar_texts")
    n_schema = 10000 if os.environ.get("PRESSD_TEST_LONG") else 1000
    first = int(os.environ.get("PRESSD_TEST_SEED", "0"))
    p = subprocess.Popen([tool], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    count = dict.fromkeys("served refused samples cut accepted refusals followed".split(), 0)
    why, wrong, slowest = {}, [], 0

    def ask(**q):
        p.stdin.write(json.dumps({"texts": [], "samples": 0, "seed": 0, **q}) + "\n")
        p.stdin.flush()
        return json.loads(p.stdout.readline() or '{"error": "the program ended", "param": "", "us": 0}')

    for i, (s, yes, no) in enumerate(CASES):
        texts = [t if s.get("format") is None or s["type"] != "string" else f'"{t}"' for t in yes + no]
        a = ask(schema=s, texts=texts)
        if a.get("accepts") != [True] * len(yes) + [False] * len(no):
            wrong.append((f"case {i}", f"{a} for {texts}", s))
    for i, (s, path) in enumerate(REFUSED):
        a = ask(schema=s)
        if a.get("param", "").split(".items.items")[0] != path or a["us"] > REFUSAL_US:
            wrong.append((f"refusal {i}", f"{a}, not of {path}", str(s)[:200]))
        slowest = max(slowest, a["us"])
    for seed in range(first, first + n_schema):
        r = random.Random(seed)
        g = Gen(r)
        s = g.schema()
        if g.defs and isinstance(s, dict):
            s["$defs"] = g.defs
        if s is True:
            s = {}
        good, bad = [], []
        check = Validator(s, format_checker=PROPER)
        for _ in range(6):
            try:
                v = g.instance(s)
            except (ValueError, RecursionError):
                continue
            if check.is_valid(v):  # an allOf part may still refuse another part's member
                good.append(v)
            for _ in range(4):
                w = g.mutate(v)
                if not check.is_valid(w):
                    bad.append(w)
        tight = r.random() < 0.5 or '"const"' in json.dumps(s) or '"enum"' in json.dumps(s)
        texts = [dump(v, tight) for v in good + bad]
        a = ask(schema=s, texts=texts, samples=10, seed=seed)
        slowest = max(slowest, a["us"])
        for other in (s, with_junk(r, s)):
            b = ask(schema=other, samples=3, seed=seed, loose=True)
            for text in b.get("samples", ["null"]):
                count["followed"] += 1
                if not isinstance(json.loads(text), dict):
                    wrong.append((seed, f"no object: {b}", other))
                elif other is s and "error" not in a and s.get("type") == "object" and not check.is_valid(json.loads(text)):
                    wrong.append((seed, f"followed, derives {text}", s))
        if "error" in a:
            count["refused"] += 1
            key = a["error"].split(": ", 1)[-1]
            why[key] = why.get(key, 0) + 1
            if not a["param"].startswith("schema") or not any(k in key for k in KNOWN):
                wrong.append((seed, f"refused: {a}", s))
            if not p.poll() is None:
                break
            continue
        count["served"] += 1
        count["cut"] += a["cut"]
        for text in a["samples"]:
            count["samples"] += 1
            try:
                v = json.loads(text)
                json.dumps(v, ensure_ascii=False).encode()  # no half of a surrogate pair
                check.validate(v)
            except Exception as e:
                wrong.append((seed, f"derives {text!r}: {str(e).splitlines()[0]}", s))
        for v, text, ok in zip(good + bad, texts, a["accepts"]):
            count["accepted" if len(good) and ok else "refusals"] += 1
            if ok and not check.is_valid(v):
                wrong.append((seed, f"accepts {text}", s))
        for v, text, ok in zip(good, texts, a["accepts"]):
            if not ok:
                wrong.append((seed, f"refuses {text}", s))
    n_regex = n_schema // 2
    for seed in range(first, first + n_regex):  # vLLM's guided_regex: the whole text matches
        r = random.Random(seed)
        e, python, make = Gen(r).choices(0)
        python = re.compile(python, re.ASCII)
        texts = [make() for _ in range(6)]
        texts += [Gen(r).mutate(t) for t in texts]
        texts = [t for t in texts if isinstance(t, str)]
        a = ask(regex=e, texts=texts, samples=10, seed=seed)
        if "error" in a:
            wrong.append((f"regex {seed}", f"refused: {a}", e))
            continue
        for text in a["samples"]:
            if not python.fullmatch(text):
                wrong.append((f"regex {seed}", f"derives {text!r}", e))
        for text, ok in zip(texts, a["accepts"]):
            if ok != bool(python.fullmatch(text)) and (ok or not re.search(r"\\S|\[\^\\s", e)):  # fewer are \S here than ASCII has
                wrong.append((f"regex {seed}", f"{'accepts' if ok else 'refuses'} {text!r}", e))
    p.stdin.close()
    p.wait()
    for seed, what, s in wrong[:20]:
        print(f"seed {seed}: {what}\n    {json.dumps(s)[:600]}")
    print(count, f"slowest {slowest} us", f"exit {p.returncode}")
    for key, n in sorted(why.items(), key=lambda x: -x[1])[:12]:
        print(f"    {n} refused: {key}")
    bad = len({w[0] for w in wrong}) + (p.returncode != 0)
    if count["served"] < n_schema * 2 // 3:
        print("too few schemas were served")
        bad += 1
    print(f"{max(n_schema + n_regex + len(CASES) + len(REFUSED) - bad, 0)} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
