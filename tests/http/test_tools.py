# SPDX-License-Identifier: Apache-2.0
"""Tools on /v1/messages and /v1/responses: what is said comes as blocks and items in its order, whole and streamed
alike, and what was called before reaches the model as a chat has it.  The fake engine says what it is told to."""
import json
import unittest

from harness import ServerTest
from test_wire import events_of

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
MTOOLS = [{"name": "weather", "description": "Weather", "input_schema": SCHEMA}, {"name": "now", "input_schema": {"type": "object"}}]
RTOOLS = [{"type": "function", "name": "weather", "description": "Weather", "parameters": SCHEMA, "strict": False},
          {"type": "function", "name": "now"}]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now"}\n</tool_call>'
CITY = '{"city": "Köln"}'

# what is said -> (kind, text or name, arguments), in order
SAID = [
    ("Hello.", [("text", "Hello.")]),
    (WEATHER, [("call", "weather", CITY)]),
    (f"I look. {WEATHER}\n{NOW}", [("text", "I look."), ("call", "weather", CITY), ("call", "now", "{}")]),
    (f"One {NOW}\nand then {WEATHER} done.",
     [("text", "One"), ("call", "now", "{}"), ("text", "\nand then"), ("call", "weather", CITY), ("text", " done.")]),
    ("<tool_call>nothing</tool_call>", [("text", "<tool_call>nothing</tool_call>")]),
]


def say(text, after=""):
    data = text.encode()
    return f"@@eos={len(data)} @@say={data.hex()} {after}"


def message(text, **fields):
    return {"messages": [{"role": "user", "content": say(text)}], "max_tokens": 400, "tools": MTOOLS, **fields}


def response(text, **fields):
    return {"input": say(text), "max_output_tokens": 400, "tools": RTOOLS, **fields}


def blocks(content):
    return [("text", b["text"]) if b["type"] == "text" else ("call", b["name"], json.dumps(b["input"], ensure_ascii=False)) for b in content]


def items(output):
    return [("text", i["content"][0]["text"]) if i["type"] == "message" else ("call", i["name"], i["arguments"]) for i in output]


class Tools(ServerTest):
    def ask(self, path, body, status=200):
        r = self.s.post(path, body)
        self.assertEqual(r.status, status, r.body)
        return r.json

    def events(self, path, body):
        r = self.s.post(path, {**body, "stream": True})
        self.assertEqual(r.status, 200, r.body)
        return events_of(r.body)

    def anthropic_stream(self, body):
        """What a client puts together, each block opened, grown and closed in its turn."""
        got, opened = [], None
        events = self.events(MESSAGES, body)
        self.assertEqual((events[0]["type"], events[-1]["type"]), ("message_start", "message_stop"))
        for e in events[1:-2]:
            if e["type"] == "content_block_start":
                self.assertIsNone(opened)
                opened = e["content_block"]
                self.assertEqual(e["index"], len(got))
                got.append(("text", opened["text"]) if opened["type"] == "text" else ("call", opened["name"], ""))
                if opened["type"] == "tool_use":
                    self.assertEqual(opened["input"], {})
                    self.assertTrue(opened["id"])
            elif e["type"] == "content_block_delta":
                self.assertEqual((e["index"], e["delta"]["type"]),
                                 (len(got) - 1, "text_delta" if opened["type"] == "text" else "input_json_delta"))
                got[-1] = (*got[-1][:-1], got[-1][-1] + e["delta"].get("text", e["delta"].get("partial_json")))
            else:
                self.assertEqual((e["type"], e["index"]), ("content_block_stop", len(got) - 1))
                opened = None
        self.assertIsNone(opened)
        return got, events[-2]["delta"]["stop_reason"]

    def openai_stream(self, body):
        got, done, parts = [], [], []
        events = self.events(RESPONSES, body)
        self.assertEqual([e["sequence_number"] for e in events], list(range(len(events))))
        self.assertEqual([e["type"] for e in events[:2]], ["response.created", "response.in_progress"])
        for e in events[2:-1]:
            kind = e["type"]
            if kind == "response.output_item.added":
                self.assertEqual((e["output_index"], e["item"]["status"]), (len(got), "in_progress"))
                self.assertEqual(len(done), len(got))
                item = e["item"]
                got.append(("text", "") if item["type"] == "message" else ("call", item["name"], item["arguments"]))
                continue
            self.assertEqual(e["output_index"], len(got) - 1)
            if kind != "response.output_item.done":
                self.assertEqual(e["item_id"], item["id"])
            if kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
                self.assertTrue(e["delta"])
                got[-1] = (*got[-1][:-1], got[-1][-1] + e["delta"])
            elif kind == "response.output_text.done":
                self.assertEqual(e["text"], got[-1][1])
            elif kind == "response.function_call_arguments.done":
                self.assertEqual((e["name"], e["arguments"]), got[-1][1:])
            elif kind == "response.output_item.done":
                done.append(e["item"])
                self.assertEqual(e["item"]["id"], item["id"])
                self.assertEqual(items(done), got)
            else:
                parts.append(kind)
        texts = sum(1 for g in got if g[0] == "text")
        self.assertEqual(sorted(parts), ["response.content_part.added"] * texts + ["response.content_part.done"] * texts)
        self.assertEqual(events[-1]["response"]["output"], done)
        self.assertEqual(len({i["id"] for i in done}), len(done))
        return got, events[-1]["response"]["status"]

    def test_messages(self):
        for text, want in SAID:
            with self.subTest(text):
                called = any(w[0] == "call" for w in want)
                whole = self.ask(MESSAGES, message(text))
                self.assertEqual((blocks(whole["content"]), whole["stop_reason"]), (want, "tool_use" if called else "end_turn"))
                self.assertEqual(self.anthropic_stream(message(text)), (want, whole["stop_reason"]))

    def test_responses(self):
        for text, want in SAID:
            with self.subTest(text):
                whole = self.ask(RESPONSES, response(text))
                self.assertEqual((items(whole["output"]), whole["status"]), (want, "completed"))
                self.assertEqual({i["status"] for i in whole["output"]}, {"completed"})
                self.assertEqual(self.openai_stream(response(text)), (want, "completed"))
                self.assertEqual((whole["tools"], whole["tool_choice"], whole["parallel_tool_calls"]), (RTOOLS, "auto", True))

    def test_a_call_cut_off(self):
        cut = WEATHER[:WEATHER.index("Kö")]
        body = message(cut, max_tokens=len(cut))
        body["messages"][0]["content"] = f"@@say={cut.encode().hex()} "
        whole = self.ask(MESSAGES, body)
        self.assertEqual((whole["stop_reason"], whole["content"][0]["input"]), ("max_tokens", {"arguments": '{"city": "'}))
        self.assertEqual(self.anthropic_stream(body), ([("call", "weather", '{"city": "')], "max_tokens"))
        body = {"input": body["messages"][0]["content"], "max_output_tokens": len(cut), "tools": RTOOLS}
        whole = self.ask(RESPONSES, body)
        self.assertEqual((whole["status"], whole["output"][0]["status"]), ("incomplete",) * 2)
        self.assertEqual(self.openai_stream(body), ([("call", "weather", '{"city": "')], "incomplete"))

    def test_arguments_that_are_no_object(self):
        for text in ('[1]', '{"a": 1e999}', '{"a" 1}'):
            whole = self.ask(MESSAGES, message('<tool_call>{"name": "now", "arguments": %s}</tool_call>' % text))
            self.assertEqual(whole["content"][0]["input"], {"arguments": text})

    def test_nothing_said(self):
        self.assertEqual(blocks(self.ask(MESSAGES, message(""))["content"]), [("text", "")])
        self.assertEqual(self.anthropic_stream(message("")), ([("text", "")], "end_turn"))
        self.assertEqual(items(self.ask(RESPONSES, response(""))["output"]), [("text", "")])
        self.assertEqual(self.openai_stream(response("")), ([("text", "")], "completed"))

    def test_choices(self):
        """What must be called is begun in the prompt; the rest is the model's."""
        rest, both = ' {"city": "Bern"}}', f"{NOW}{WEATHER}"
        named = {"type": "tool", "name": "weather"}
        for choice, text, want in ((named, rest, [("call", "weather", '{"city": "Bern"}')]),
                                   ({"type": "any"}, 'now", "arguments": {}}', [("call", "now", "{}")]),
                                   ({"type": "auto", "disable_parallel_tool_use": True}, both, [("call", "now", "{}")]),
                                   ({"type": "auto"}, both, [("call", "now", "{}"), ("call", "weather", CITY)]),
                                   ({"type": "none"}, both, [("text", both)])):
            with self.subTest(choice):
                body = message(text, tool_choice=choice)
                self.assertEqual(blocks(self.ask(MESSAGES, body)["content"]), want)
                self.assertEqual(self.anthropic_stream(body)[0], want)
        for choice, text, want in (({"type": "function", "name": "weather"}, rest, [("call", "weather", '{"city": "Bern"}')]),
                                   ("required", 'now", "arguments": {}}', [("call", "now", "{}")]),
                                   ("auto", both, [("call", "now", "{}"), ("call", "weather", CITY)]), ("none", both, [("text", both)])):
            with self.subTest(choice):
                body = response(text, tool_choice=choice)
                whole = self.ask(RESPONSES, body)
                self.assertEqual((items(whole["output"]), whole["tool_choice"]), (want, choice))
                self.assertEqual(self.openai_stream(body)[0], want)
        whole = self.ask(RESPONSES, response(both, parallel_tool_calls=False))
        self.assertEqual((items(whole["output"]), whole["parallel_tool_calls"]), ([("call", "now", "{}")], False))
        self.assertEqual(self.openai_stream(response(both, parallel_tool_calls=False))[0], [("call", "now", "{}")])

    def test_what_was_called_before(self):
        """All three APIs give the model the same text; the fake engine's answer is its prompt."""
        chat = [{"role": "user", "content": "ask"},
                {"role": "assistant", "content": "I look.", "tool_calls": [
                    {"id": "a1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
                    {"id": "a2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
                {"role": "tool", "tool_call_id": "a1", "content": "noon"}, {"role": "tool", "tool_call_id": "a2", "content": "warm\nvery"},
                {"role": "user", "content": "so?"}]
        text = [{"type": "text", "text": "warm"}, {"type": "text", "text": "very"}]
        blocks = [chat[0], {"role": "assistant", "content": [
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "a1", "name": "now", "input": {}},
            {"type": "tool_use", "id": "a2", "name": "weather", "input": {"city": "Bern"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a1", "content": "noon"},
                                         {"type": "tool_result", "tool_use_id": "a2", "content": text, "is_error": False},
                                         {"type": "text", "text": "so?"}]}]
        items = [chat[0], {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
                 {"type": "function_call", "call_id": "a1", "name": "now", "arguments": "{}", "id": "fc_1", "status": "completed"},
                 {"type": "function_call", "call_id": "a2", "name": "weather", "arguments": '{"city": "Bern"}'},
                 {"type": "function_call_output", "call_id": "a1", "output": "noon"},
                 {"type": "function_call_output", "call_id": "a2", "output": [{"type": "input_text", "text": "warm"}, {"type": "input_text", "text": "very"}]},
                 {"role": "user", "content": "so?"}]
        r = self.s.post("/v1/chat/completions", {"messages": chat, "max_tokens": 400})
        want = r.json["choices"][0]["message"]["content"]
        for part in ("I look.", '"Bern"', "noon", "warm\nvery", "so?"):
            self.assertIn(part, want)
        self.assertEqual(self.ask(MESSAGES, {"messages": blocks, "max_tokens": 400})["content"][0]["text"], want)
        self.assertEqual(self.ask(RESPONSES, {"input": items, "max_output_tokens": 400})["output"][0]["content"][0]["text"], want)
        ids = self.ask("/tokenize", {"messages": chat, "tools": [
            {"type": "function", "function": {"name": t["name"], **({"description": t["description"]} if "description" in t else {}),
                                              "parameters": t["input_schema"]}} for t in MTOOLS]})["count"]
        self.assertEqual(self.ask(MESSAGES + "/count_tokens", {"messages": blocks, "tools": MTOOLS})["input_tokens"], ids)

    def test_refusals(self):
        use = {"type": "tool_use", "id": "a", "name": "now", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
        hi = {"role": "user", "content": "hi"}
        for change, param, words in (
                ({"tools": 5}, "tools", "an array"), ({"tools": [5]}, "tools[0]", "an object"),
                ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]", "bash_20250124"),
                ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0]", "tools[0].name"),
                ({"tools": [{"name": "a"}]}, "tools[0]", "input_schema is missing"),
                ({"tools": [{"name": "a", "input_schema": {}, "description": 5}]}, "tools[0]", "description"),
                ({"tools": [{"name": "a", "input_schema": {}, "strict": 5}]}, "tools[0].strict", "strict"),
                ({"tools": [{"name": "a", "input_schema": {"type": "object", "properties": {"x": {"not": {}}}}, "strict": True}],
                  "tool_choice": {"type": "any"}}, "tools[0].input_schema", "input_schema"),
                ({"tool_choice": "auto"}, "tool_choice", "type"), ({"tool_choice": {"type": "tool"}}, "tool_choice", "name"),
                ({"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice", "other"),
                ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "tool_choice.disable_parallel_tool_use", "true or false"),
                ({"tools": None, "tool_choice": {"type": "any"}}, "tool_choice", "no tools"),
                ({"messages": [{"role": "user", "content": [use]}]}, "messages[0].content[0]", "tool_result"),
                ({"messages": [hi, {"role": "assistant", "content": [result]}, hi]}, "messages[1].content[0]", "tool_use"),
                ({"messages": [hi, {"role": "assistant", "content": [{**use, "input": "{}"}]}, hi]}, "messages[1].content[0]", "object"),
                ({"messages": [{"role": "user", "content": [{**result, "tool_use_id": None}]}]}, "messages[0].content[0]", "tool_use_id"),
                ({"messages": [{"role": "user", "content": [{**result, "content": 5}]}]}, "messages[0].content[0]", "content"),
                ({"messages": [{"role": "user", "content": [{**result, "content": [{"type": "image"}]}]}]}, "messages[0].content[0].content[0]", "image")):
            with self.subTest(change):
                error = self.ask(MESSAGES, {**message("x"), **change}, 400)["error"]
                self.assertTrue(error["param"].startswith(param), error)
                self.assertIn(words, error["message"])
        call = {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"}
        for change, param, words in (
                ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"), ({"tools": [{"name": "now"}]}, "tools[0]", "function"),
                ({"tools": [{"type": "function", "name": "a", "parameters": []}]}, "tools[0]", "parameters"),
                ({"tools": [{"type": "function", "name": "a", "strict": True, "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}],
                  "tool_choice": "required"}, "tools[0].parameters", "parameters"),
                ({"tool_choice": {"type": "function"}}, "tool_choice", "name"), ({"tool_choice": {"type": "mcp", "name": "x"}}, "tool_choice", "function"),
                ({"tool_choice": "never"}, "tool_choice", "required"), ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
                ({"input": [{**call, "arguments": {}}]}, "input[0]", "arguments"), ({"input": [{**call, "call_id": ""}]}, "input[0]", "call_id"),
                ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]", "call_id"),
                ({"input": [{"type": "function_call_output", "call_id": "a", "output": 5}]}, "input[0].output", "array"),
                ({"input": [{"type": "reasoning"}]}, "input[0]", "reasoning")):
            with self.subTest(change):
                error = self.ask(RESPONSES, {**response("x"), **change}, 400)["error"]
                self.assertTrue(error["param"].startswith(param), error)
                self.assertIn(words, error["message"])

    def test_a_failure_on_the_way(self):
        at = "@@error=9 @@say=" + NOW.encode().hex()
        events = self.events(MESSAGES, {"messages": [{"role": "user", "content": at}], "max_tokens": 99, "tools": MTOOLS})
        self.assertEqual(events[-1]["type"], "error")
        self.assertEqual(self.events(RESPONSES, {"input": at, "tools": RTOOLS})[-1]["type"], "error")


if __name__ == "__main__":
    unittest.main()
