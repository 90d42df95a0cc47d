# SPDX-License-Identifier: Apache-2.0
"""Tools through OpenAI's client, LangChain's bind_tools and LiteLLM, all unmodified."""

import json
import typing
import unittest

import common
import litellm
import openai
import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"]}}}
NOW = {"type": "function", "function": {"name": "now", "description": "The time"}}
ASK = [{"role": "user", "content": "What is the weather in Paris, and what time is it?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
# What a model that knows tools would say by itself.
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}\n</tool_call>'
SAID = f"I will look. {CALL}\n" + '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def says(text):
    return {"grammar": "root ::= " + json.dumps(text)}


class OpenAI(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = openai.OpenAI(base_url=f"http://127.0.0.1:{self.s.port}/v1", api_key="none", max_retries=0, timeout=120)
        self.ask = dict(model="any", messages=ASK, tools=[WEATHER, NOW], temperature=0, max_tokens=160)

    def streamed(self, **ask):
        """content, [[id, name, arguments]], finish_reason, as a client puts them together."""
        content, calls, finish, roles = "", [], None, []
        for chunk in self.c.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
            if not chunk.choices:
                self.assertGreater(chunk.usage.completion_tokens, 0)
                continue
            d = chunk.choices[0].delta
            self.assertIsNone(finish)  # nothing behind the end
            roles += [d.role] if d.role else []
            content += d.content or ""
            finish = chunk.choices[0].finish_reason
            for t in d.tool_calls or []:
                if t.id:
                    self.assertEqual((t.index, t.type), (len(calls), "function"))
                    calls.append([t.id, t.function.name, ""])
                calls[t.index][2] += t.function.arguments or ""
        self.assertEqual(roles, ["assistant"])
        self.assertEqual(len({c[0] for c in calls}), len(calls))
        return content, [c[1:] for c in calls], finish

    def both(self, **ask):
        """The same whole and streamed."""
        whole = self.c.chat.completions.create(**ask).choices[0]
        calls = [[c.function.name, c.function.arguments] for c in whole.message.tool_calls or []]
        self.assertEqual(self.streamed(**ask), (whole.message.content or "", calls, whole.finish_reason))
        return whole, calls

    def test_named(self):
        whole, calls = self.both(**self.ask, tool_choice=NAMED)
        self.assertEqual((whole.finish_reason, whole.message.content, len(calls)), ("tool_calls", None, 1))
        self.assertEqual(set(json.loads(calls[0][1])), {"city", "unit"})
        _, calls = self.both(**self.ask, tool_choice={"type": "function", "function": {"name": "now"}})
        self.assertEqual(calls, [["now", "{}"]])

    def test_required(self):
        whole, calls = self.both(**self.ask, tool_choice="required", parallel_tool_calls=False)
        self.assertEqual((whole.finish_reason, len(calls)), ("tool_calls", 1))
        json.loads(calls[0][1])
        _, calls = self.both(**self.ask, tool_choice="required")  # this model goes on calling
        self.assertGreater(len(calls), 1)
        for _, arguments in calls[:-1]:
            json.loads(arguments)

    def test_none(self):
        whole, calls = self.both(**self.ask, tool_choice="none")
        self.assertEqual(calls, [])
        plain = self.c.chat.completions.create(model="any", messages=ASK, temperature=0, max_tokens=160).choices[0]
        self.assertEqual((whole.message.content, whole.finish_reason), (plain.message.content, plain.finish_reason))

    def test_auto(self):
        self.assertEqual(self.both(**self.ask, extra_body=says("It is warm."))[0].message.content, "It is warm.")
        whole, calls = self.both(**self.ask, tool_choice="auto", extra_body=says(SAID))
        self.assertEqual((whole.message.content, whole.finish_reason), ("I will look.", "tool_calls"))
        self.assertEqual([(n, json.loads(a)) for n, a in calls], [("get_weather", {"city": "Paris", "unit": "celsius"}), ("now", {})])
        _, calls = self.both(**self.ask, parallel_tool_calls=False, extra_body=says(SAID))
        self.assertEqual([n for n, _ in calls], ["get_weather"])

    def test_a_form_or_a_call(self):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"], "additionalProperties": False}}}
        for seed in range(4):
            whole, calls = self.both(**{**self.ask, "temperature": 1.5}, seed=seed, response_format=form)
            if calls:
                json.loads(calls[0][1])
            else:
                self.assertEqual(list(json.loads(whole.message.content)), ["warm"])

    def test_the_next_turn(self):
        first = self.c.chat.completions.create(**self.ask, tool_choice=NAMED).choices[0].message
        talk = ASK + [first.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "22 degrees and sunny"}]
        second = self.c.chat.completions.create(**{**self.ask, "messages": talk})
        self.assertTrue(second.choices[0].message.content or second.choices[0].message.tool_calls)
        text = self.s.ask("/detokenize", {"tokens": self.s.ask("/tokenize", {"messages": talk, "tools": [WEATHER, NOW]})["tokens"]})["prompt"]
        for part in ("get_weather", "Paris", "22 degrees and sunny"):
            self.assertIn(part, text)
        without = self.c.chat.completions.create(model="any", messages=talk, max_tokens=4)  # no tools any more
        self.assertEqual(len(without.choices), 1)

    def test_parsed_by_pydantic(self):
        class Forecast(pydantic.BaseModel):
            """The weather of some days."""
            city: str = pydantic.Field(max_length=20)
            days: int
            unit: typing.Literal["celsius", "fahrenheit"]
            where: typing.Optional[typing.Literal["north", "south"]]

        tools = [openai.pydantic_function_tool(Forecast)]
        ask = dict(model="any", messages=ASK, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=160)
        for seed in range(3):
            call = self.c.chat.completions.parse(**ask, seed=seed, temperature=1.5).choices[0].message.tool_calls[0]
            self.assertIsInstance(call.function.parsed_arguments, Forecast)
        with self.c.chat.completions.stream(**ask, temperature=0) as stream:
            kinds = {e.type for e in stream}
            final = stream.get_final_completion().choices[0]
        self.assertLessEqual({"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"}, kinds)
        self.assertIsInstance(final.message.tool_calls[0].function.parsed_arguments, Forecast)
        self.assertEqual(final.finish_reason, "tool_calls")

    def test_refusals(self):
        for bad, param in (({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"), ({"tool_choice": "never"}, "tool_choice"),
                           ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
                           ({"messages": ASK + [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[1].tool_calls[0]")):
            with self.subTest(bad), self.assertRaises(openai.BadRequestError) as e:
                self.c.chat.completions.create(**{**self.ask, **bad})
            self.assertEqual(e.exception.param, param)


class Responses(unittest.TestCase):
    """OpenAI's client on /v1/responses."""

    def setUp(self):
        self.s = common.server()
        self.c = openai.OpenAI(base_url=f"http://127.0.0.1:{self.s.port}/v1", api_key="none", max_retries=0, timeout=120)
        flat = [{"type": "function", "strict": False, "parameters": None, **t["function"]} for t in (WEATHER, NOW)]
        self.ask = dict(model="any", input=ASK, tools=flat, temperature=0, max_output_tokens=160)

    def both(self, **ask):
        """The same whole and streamed: items without their ids, and the status."""
        def shown(r):
            return [(i.type, i.content[0].text) if i.type == "message" else (i.type, i.name, i.arguments) for i in r.output], r.status
        whole = self.c.responses.create(**ask)
        with self.c.responses.stream(**{k: v for k, v in ask.items()}) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual(shown(final), shown(whole))
        done = [e for e in events if e.type == "response.function_call_arguments.done"]
        self.assertEqual([(e.name, e.arguments) for e in done], [s[1:] for s in shown(whole)[0] if s[0] == "function_call"])
        for e in done:
            said = "".join(d.delta for d in events if d.type == "response.function_call_arguments.delta" and d.item_id == e.item_id)
            self.assertEqual(said, e.arguments)
        return whole, *shown(whole)

    def test_a_call_that_must_be_made(self):
        whole, items, status = self.both(**self.ask, tool_choice={"type": "function", "name": "get_weather"})
        self.assertEqual((len(items), items[0][:2], status), (1, ("function_call", "get_weather"), "completed"))
        self.assertEqual(set(json.loads(items[0][2])), {"city", "unit"})
        self.assertEqual((whole.tool_choice.name, whole.tools[1].name, whole.parallel_tool_calls), ("get_weather", "now", True))
        _, items, _ = self.both(**self.ask, tool_choice="required", parallel_tool_calls=False)
        self.assertEqual((len(items), items[0][0]), (1, "function_call"))

    def test_calls_by_itself(self):
        _, items, status = self.both(**self.ask, extra_body=says(SAID))
        self.assertEqual(([(*i[:2], *map(json.loads, i[2:])) for i in items], status),
                         ([("message", "I will look."), ("function_call", "get_weather", {"city": "Paris", "unit": "celsius"}),
                           ("function_call", "now", {})], "completed"))
        _, items, _ = self.both(**self.ask, tool_choice="none", extra_body=says(SAID))
        self.assertEqual(items, [("message", SAID)])

    def test_the_next_turn(self):
        first = self.c.responses.create(**self.ask, tool_choice={"type": "function", "name": "get_weather"})
        talk = [*ASK, *first.output,  # as it came
                {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "22 degrees and sunny"}]
        second, _, _ = self.both(**{**self.ask, "input": talk})
        tools = [{"type": "function", "function": {**t["function"], "strict": False}} for t in (WEATHER, NOW)]
        chat = self.s.ask("/tokenize", {"tools": tools, "messages": [
            *ASK, {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "type": "function", "function": {
                "name": "get_weather", "arguments": first.output[0].arguments}}]},
            {"role": "tool", "tool_call_id": "x", "content": "22 degrees and sunny"}]})
        self.assertEqual(second.usage.input_tokens, chat["count"])

    def test_parsed_by_pydantic(self):
        class Forecast(pydantic.BaseModel):
            """The weather of some days."""
            city: str = pydantic.Field(max_length=20)
            days: int

        class Said(pydantic.BaseModel):
            warm: bool

        tools = [openai.pydantic_function_tool(Forecast)["function"]]
        tools = [{"type": "function", **t} for t in tools]
        ask = dict(model="any", input=ASK, max_output_tokens=160, temperature=1.5)
        for seed in range(3):
            call = self.c.responses.parse(**ask, tools=tools, tool_choice="required", parallel_tool_calls=False, extra_body={"seed": seed}).output[0]
            self.assertEqual(set(json.loads(call.arguments)), {"city", "days"})
            self.assertIsInstance(self.c.responses.parse(**ask, text_format=Said, extra_body={"seed": seed}).output_parsed, Said)

    def test_refusals(self):
        for bad, param in (({"tools": [{"type": "web_search"}]}, "tools[0]"), ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
                           ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]")):
            with self.subTest(bad), self.assertRaises(openai.BadRequestError) as e:
                self.c.responses.create(**{**self.ask, **bad})
            self.assertEqual(e.exception.param, param)


@tool
def get_weather(city: str, unit: typing.Literal["celsius", "fahrenheit"]) -> str:
    """Weather of a city."""
    return f"22 {unit} in {city}"


@tool
def now() -> str:
    """The time."""
    return "noon"


class Answer(pydantic.BaseModel):
    """What the person said."""
    mood: typing.Literal["happy", "sad"]
    score: int


class LangChain(unittest.TestCase):
    def setUp(self):
        at = dict(base_url=f"http://127.0.0.1:{common.server().port}/v1", api_key="none", model="any", max_retries=0, timeout=120)
        self.llm = ChatOpenAI(**at, temperature=0, max_tokens=160)

    def test_bind_tools_and_go_on(self):
        ask = [HumanMessage("What is the weather in Paris?")]
        for choice in ("get_weather", "any"):
            bound = self.llm.bind_tools([get_weather, now], tool_choice=choice, parallel_tool_calls=False)
            whole = bound.invoke(ask)
            self.assertEqual((len(whole.tool_calls), whole.invalid_tool_calls), (1, []))
            merged = None
            for chunk in bound.stream(ask):
                merged = chunk if merged is None else merged + chunk
            self.assertEqual([(c["name"], c["args"]) for c in merged.tool_calls], [(c["name"], c["args"]) for c in whole.tool_calls])
        call = whole.tool_calls[0]
        result = (get_weather if call["name"] == "get_weather" else now).invoke(call)
        self.assertIsInstance(result, ToolMessage)
        then = self.llm.bind_tools([get_weather, now]).invoke(ask + [whole, result])
        self.assertTrue(then.content or then.tool_calls)

    def test_structured_output(self):
        for method in ("function_calling", "json_schema"):
            got = self.llm.with_structured_output(Answer, method=method).invoke("I won the lottery!")
            self.assertIsInstance(got, Answer)


class LiteLLM(unittest.TestCase):
    def test_whole_and_rebuilt_from_a_stream(self):
        ask = dict(model="openai/any", api_base=f"http://127.0.0.1:{common.server().port}/v1", api_key="none", num_retries=0, timeout=120,
                   messages=ASK, tools=[WEATHER, NOW], tool_choice=NAMED, max_tokens=160, temperature=0)
        whole = litellm.completion(**ask).choices[0]
        built = litellm.stream_chunk_builder(list(litellm.completion(**ask, stream=True))).choices[0]
        self.assertEqual([(c.function.name, c.function.arguments) for c in built.message.tool_calls],
                         [(c.function.name, c.function.arguments) for c in whole.message.tool_calls])
        self.assertEqual((built.finish_reason, whole.finish_reason), ("tool_calls",) * 2)
