# SPDX-License-Identifier: Apache-2.0
"""Wire details that named clients and servers count on, one row each: who, what, and a check.

Rows are (name, path, body, check); the name is "who: what".  A body with "stream" gives its events to the check,
"[DONE]" included as text; others the reply's JSON."""
import json
import unittest

from harness import ServerTest

HI = [{"role": "user", "content": "hello"}]
C, CHAT, TOK, DETOK = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"


def prompt(**fields):
    return {"prompt": "hello", "max_tokens": 3, **fields}


def chat(**fields):
    return {"messages": HI, "max_tokens": 3, **fields}


TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = b'<tool_call>{"name": "now", "arguments": {}}</tool_call>'
CALLS = f"@@eos={len(CALL)} @@say={CALL.hex()} "


def choices(events):
    return [e["choices"][0] for e in events[:-1] if e.get("choices")]


REPLIES = [
    # ---- shapes ----
    ("openai: completion objects are text_completion, ids cmpl-", C, prompt(),
     lambda r: r["object"] == "text_completion" and r["id"].startswith("cmpl-") and isinstance(r["created"], int)),
    ("openai: chat objects are chat.completion, ids chatcmpl-", CHAT, chat(),
     lambda r: r["object"] == "chat.completion" and r["id"].startswith("chatcmpl-")),
    ("mlcommons endpoints #133: refusal is null and there", CHAT, chat(), lambda r: r["choices"][0]["message"]["refusal"] is None),
    ("vllm: cached_tokens in prompt_tokens_details", C, prompt(), lambda r: r["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}),
    ("llama.cpp: timings prompt_n, prompt_ms, prompt_per_second, predicted_*", C, prompt(),
     lambda r: {"prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second"} <= set(r["timings"])),
    ("open webui: timings is never null", CHAT, chat(), lambda r: r["timings"] is not None),
    ("openai: completions default to 16 tokens", C, {"prompt": "x" * 40}, lambda r: r["usage"]["completion_tokens"] == 16),
    ("openai: max_completion_tokens wins over max_tokens", CHAT, chat(max_completion_tokens=2), lambda r: r["usage"]["completion_tokens"] == 2),
    ("openai: logprobs 0 is the chosen token's alone", C, prompt(logprobs=0),
     lambda r: [len(t) for t in r["choices"][0]["logprobs"]["top_logprobs"]] == [1, 1, 1]),
    ("openai: chat logprobs have token, logprob, bytes, top_logprobs", CHAT, chat(logprobs=True, top_logprobs=2),
     lambda r: {"token", "logprob", "bytes", "top_logprobs"} == set(r["choices"][0]["logprobs"]["content"][0])
     and len(r["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2),
    # ---- prompts ----
    ("aiperf: the prompt is an array even of one string", C, prompt(prompt=["hello"]), lambda r: len(r["choices"]) == 1),
    ("lm-evaluation-harness: batched token arrays", C, prompt(prompt=[[104, 105], [97]], echo=True, logprobs=1),
     lambda r: [len(c["logprobs"]["tokens"]) for c in r["choices"]] == [5, 4]),
    ("llama.cpp #27174: echo's token_logprobs are prompt + generated, the first null", C, prompt(echo=True, logprobs=1, max_tokens=1),
     lambda r: len(r["choices"][0]["logprobs"]["token_logprobs"]) == r["usage"]["prompt_tokens"] + 1
     and r["choices"][0]["logprobs"]["token_logprobs"][0] is None and r["choices"][0]["logprobs"]["top_logprobs"][0] is None),
    ("lm-evaluation-harness: echo with max_tokens 0", C, prompt(echo=True, logprobs=1, max_tokens=0),
     lambda r: r["choices"][0]["text"] == "hello" and r["usage"]["completion_tokens"] == 0),
    ("gguf backend: text_offset counts characters from the echo's start", C, prompt(prompt="hé", echo=True, logprobs=1, max_tokens=1),
     lambda r: r["choices"][0]["logprobs"]["text_offset"][-1] == 2),
    # ---- what load tools send ----
    ("guidellm: ignore_eos gives exactly max_tokens", C, prompt(prompt="@@eos=1 x", ignore_eos=True, max_tokens=5), lambda r: r["usage"]["completion_tokens"] == 5),
    ("vllm: min_tokens holds back the end", C, prompt(prompt="@@eos=1 x", min_tokens=4, max_tokens=9), lambda r: r["usage"]["completion_tokens"] == 4),
    ("vllm bench serve: repetition_penalty with logprobs null", C, prompt(repetition_penalty=1.0, logprobs=None, ignore_eos=True), lambda r: True),
    ("vllm bench serve: chat takes max_completion_tokens alone", CHAT, {"messages": HI, "max_completion_tokens": 2}, lambda r: r["usage"]["completion_tokens"] == 2),
    ("openai: null is not given, for every field", C, prompt(**dict.fromkeys(
        "stop seed logit_bias logprobs suffix user n best_of echo stream stream_options temperature top_p presence_penalty".split())), lambda r: True),
    ("openai: tools, response_format and functions may be null", CHAT, chat(**dict.fromkeys("tools tool_choice response_format functions function_call".split())), lambda r: True),
    ("vllm #10463: unknown fields are ignored", C, prompt(no_such_field=1, guided_decoding_backend="x"), lambda r: True),
    ("openai: any model name is served", C, prompt(model="gpt-9"), lambda r: r["model"] == "fake"),
    ("langchain: content as parts", CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]), lambda r: True),
    ("openai: role developer is system", CHAT, chat(messages=[{"role": "developer", "content": "x"}, *HI]), lambda r: True),
    ("vllm: ids of a token array are not given a first special token", C, prompt(prompt=[104, 105]), lambda r: r["usage"]["prompt_tokens"] == 2),
    ("openai: a batch of strings keeps its order", C, prompt(prompt=["@@say=61", "@@say=62"], max_tokens=1), lambda r: [(c["index"], c["text"]) for c in r["choices"]] == [(0, "a"), (1, "b")]),
    ("litellm, mlflow: the cache's size stands in usage as integers", C, prompt(), lambda r: all(
        isinstance(r["usage"][k], int) for k in ("kv_cache_bytes", "kv_cache_bytes_dense", "kv_cache_bytes_peak"))),
    ("open webui: timings carry the cache's size", CHAT, chat(), lambda r: any(k.startswith("kv_") and isinstance(v, int) for k, v in r["timings"].items())),
    ("openai: a completion without logprobs has logprobs null", C, prompt(), lambda r: r["choices"][0]["logprobs"] is None),
    ("openai: completion logprobs are parallel arrays", C, prompt(logprobs=2), lambda r: {k: len(v) for k, v in r["choices"][0]["logprobs"].items()} ==
     dict.fromkeys(("tokens", "token_logprobs", "top_logprobs", "text_offset"), 3)),
    ("vllm: log probabilities are finite", C, prompt(logprobs=5, logit_bias={"5": -100}), lambda r: all(
        isinstance(x, (int, float)) and x > -1e5 for t in r["choices"][0]["logprobs"]["top_logprobs"] for x in t.values())),
    ("openai: total_tokens is the sum", C, prompt(), lambda r: r["usage"]["total_tokens"] == r["usage"]["prompt_tokens"] + r["usage"]["completion_tokens"]),
    ("openai: the end by itself is stop, at the bound length", C, prompt(prompt="@@eos=1 x", max_tokens=9), lambda r: r["choices"][0]["finish_reason"] == "stop"),
    ("openai: tool_choice none and modalities text are neutral", CHAT, chat(tool_choice="none", modalities=["text"]), lambda r: True),
    ("openai: a chat without logprobs has logprobs null", CHAT, chat(), lambda r: r["choices"][0]["logprobs"] is None),
    ("openai: the reply's message is the assistant's, its content text", CHAT, chat(),
     lambda r: r["choices"][0]["message"]["role"] == "assistant" and isinstance(r["choices"][0]["message"]["content"], str)),
    ("openai: a chat's first index is 0 and its reason length", CHAT, chat(), lambda r: (r["choices"][0]["index"], r["choices"][0]["finish_reason"]) == (0, "length")),
    ("openai: a call ends with tool_calls", CHAT, chat(max_tokens=200, tools=[TOOL], messages=[{"role": "user", "content": CALLS}]),
     lambda r: (r["choices"][0]["finish_reason"], r["choices"][0]["message"]["content"]) == ("tool_calls", None)),
    ("guidellm: max_tokens, max_completion_tokens, ignore_eos and stop null together", CHAT,
     chat(max_completion_tokens=5, max_tokens=5, ignore_eos=True, stop=None, messages=[{"role": "user", "content": "@@eos=1 x"}]),
     lambda r: r["usage"]["completion_tokens"] == 5),
    ("openai: n answers, an index each, usage of all", C, prompt(n=3), lambda r: ([c["index"] for c in r["choices"]], r["usage"]["completion_tokens"]) == ([0, 1, 2], 9)),
    ("openai: stop as a string or as a list of it", C, prompt(prompt="@@say=6162", stop=["b"], max_tokens=5), lambda r: r["choices"][0]["text"] == "a"),
    ("openai: text_offset without echo counts from the answer", C, prompt(prompt="@@say=c3a961", logprobs=0, max_tokens=3),
     lambda r: r["choices"][0]["logprobs"]["text_offset"][0] == 0),
    ("lm-evaluation-harness: one token array", C, prompt(prompt=[104, 105], echo=True, logprobs=1, max_tokens=0),
     lambda r: r["choices"][0]["logprobs"]["token_logprobs"][0] is None and len(r["choices"][0]["logprobs"]["tokens"]) == 2),
    ("pressd: a press with ratio 0 drops nothing", C, prompt(compression={"press": "knorm", "ratio": 0}),
     lambda r: r["kv_cache"]["press"] == "knorm" and r["kv_cache"]["tokens_kept"] == r["kv_cache"]["tokens_seen"]),
    # ---- forms of an answer ----
    ("openai: response_format text", CHAT, chat(response_format={"type": "text"}), lambda r: True),
    ("llama.cpp: response_format json_object with a schema", CHAT, chat(response_format={"type": "json_object", "schema": {"type": "object"}}), lambda r: True),
    ("llama.cpp: grammar and json_schema at the top level", C, prompt(json_schema={"type": "object"}, grammar=None), lambda r: True),
    ("vllm: guided_json as text, guided_regex, guided_choice, guided_grammar", C, prompt(guided_json='{"type": "object"}', guided_regex=None), lambda r: True),
    ("vllm: guided_regex", C, prompt(guided_regex="[a-z]+"), lambda r: True),
    ("vllm: structured_outputs regex", C, prompt(structured_outputs={"regex": "\\d{3}-\\d{4}"}), lambda r: True),
    ("vllm: structured_outputs json_object", C, prompt(structured_outputs={"json_object": True}), lambda r: True),
    ("vllm: structured_outputs choice", C, prompt(structured_outputs={"choice": ["a", "b"]}), lambda r: True),
    # ---- vLLM's helpers ----
    ("vllm: /tokenize {prompt} -> tokens, count, max_model_len", TOK, {"prompt": "hi"},
     lambda r: (r["tokens"], r["count"]) == ([256, 104, 105], 3) and r["max_model_len"] > 0),
    ("vllm: /tokenize without the first special token", TOK, {"prompt": "hi", "add_special_tokens": False}, lambda r: r["tokens"] == [104, 105]),
    ("vllm: /detokenize {tokens} -> prompt", DETOK, {"tokens": [104, 105]}, lambda r: r == {"prompt": "hi"}),
    ("llm-d: completions/render gives token_ids per prompt", C + "/render", {"prompt": ["hi", [97]]}, lambda r: [x["token_ids"] for x in r] == [[256, 104, 105], [97]]),
    ("llm-d: chat/completions/render gives the chat's own ids", CHAT + "/render", {"messages": HI}, lambda r: r["token_ids"][0] == 258 and r["token_ids"][-1] == 10),
    ("openai: embeddings as floats, unit length", "/v1/embeddings", {"input": ["a", "b"], "encoding_format": "float"},
     lambda r: [round(sum(x * x for x in d["embedding"]), 4) for d in r["data"]] == [1, 1] and [d["index"] for d in r["data"]] == [0, 1]),
    ("openai: embeddings as base64 of little-endian floats", "/v1/embeddings", {"input": "a", "encoding_format": "base64"},
     lambda r: len(r["data"][0]["embedding"]) == -(-256 * 4 // 3) * 4),
    ("anthropic: a message has type, role, content blocks, stop_reason, usage", "/v1/messages", chat(),
     lambda r: (r["type"], r["role"], r["content"][0]["type"], r["stop_reason"], r["usage"]["output_tokens"]) == ("message", "assistant", "text", "max_tokens", 3)),
    ("anthropic: the stop sequence is named", "/v1/messages", chat(messages=[{"role": "user", "content": "@@say=616263"}], stop_sequences=["x", "b"]),
     lambda r: (r["stop_reason"], r["stop_sequence"], r["content"][0]["text"]) == ("stop_sequence", "b", "a")),
    ("openai: a response that met its bound is incomplete", "/v1/responses", {"input": "hello", "max_output_tokens": 3},
     lambda r: (r["status"], r["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})),
]

STREAMS = [
    ("openai: ends with [DONE]", C, prompt(), lambda e: e[-1] == "[DONE]"),
    ("ollama #4357, llm-rosetta #444: finish_reason is null and there inside a stream", CHAT, chat(),
     lambda e: all("finish_reason" in c for c in choices(e)) and [c["finish_reason"] for c in choices(e)][:-1] == [None] * (len(choices(e)) - 1)),
    ("vllm #35705: the last reason comes with an empty delta", CHAT, chat(), lambda e: choices(e)[-1]["finish_reason"] == "length" and not choices(e)[-1]["delta"]),
    ("openai: the first delta carries the role", CHAT, chat(), lambda e: choices(e)[0]["delta"]["role"] == "assistant"),
    ("vllm bench serve: one token per event", C, prompt(max_tokens=5), lambda e: len([c for c in choices(e) if c["text"]]) == 5),
    ("openai: no usage unless asked for", CHAT, chat(), lambda e: all(not x.get("usage") for x in e[:-1])),
    ("openai, litellm: the usage event has empty choices and comes last", CHAT, chat(stream_options={"include_usage": True}),
     lambda e: e[-2]["choices"] == [] and e[-2]["usage"]["completion_tokens"] == 3 and all(x["choices"] for x in e[:-2])),
    ("guidellm: continuous_usage_stats puts running usage on every chunk", C, prompt(stream_options={"include_usage": True, "continuous_usage_stats": True}),
     lambda e: [x["usage"]["completion_tokens"] for x in e[:-1]] == [1, 2, 3, 3, 3]),
    ("aiperf: object on every event", C, prompt(), lambda e: all(x["object"] == "text_completion" for x in e[:-1])),
    ("openai: one id for all events", CHAT, chat(), lambda e: len({x["id"] for x in e[:-1]}) == 1),
    ("vllm: a failure on the way is an event with error, then [DONE]", C, prompt(prompt="@@error=2", max_tokens=9),
     lambda e: set(e[-2]["error"]) == {"message", "type", "param", "code"} and e[-1] == "[DONE]"),
    ("openai: UTF-8 is never cut inside a code point", C, prompt(prompt="@@say=C3A9E282AC", max_tokens=5),
     lambda e: "\ufffd" not in "".join(c["text"] for c in choices(e)) and "".join(c["text"] for c in choices(e)).startswith("é€")),
    ("vllm bench serve: a token that waits for its character is an event all the same", C, prompt(prompt="@@say=C3A9E282AC", max_tokens=5),
     lambda e: len(choices(e)) == 6),
    ("guidellm: running usage on a chat's chunks, the last one wins", CHAT, chat(stream_options={"include_usage": True, "continuous_usage_stats": True}),
     lambda e: [x["usage"]["completion_tokens"] for x in e[:-1]] == sorted(x["usage"]["completion_tokens"] for x in e[:-1]) and e[-2]["usage"]["completion_tokens"] == 3),
    ("openai: a streamed call has index and id first, and ends with tool_calls", CHAT,
     chat(max_tokens=200, tools=[TOOL], messages=[{"role": "user", "content": CALLS}]),
     lambda e: choices(e)[-1]["finish_reason"] == "tool_calls" and next(c for c in choices(e) if "tool_calls" in c["delta"])["delta"]["tool_calls"][0]["index"] == 0
     and sum("id" in t for c in choices(e) for t in c["delta"].get("tool_calls", [])) == 1),
    ("openai: stream_options null, and include_usage false, ask for nothing", C, prompt(stream_options={"include_usage": False}),
     lambda e: all(not x.get("usage") for x in e[:-1])),
    ("litellm, open webui: the cache's size stands in the usage event", CHAT, chat(stream_options={"include_usage": True}),
     lambda e: isinstance(e[-2]["usage"]["kv_cache_bytes"], int) and e[-2]["kv_cache"]["press"] == "none"),
    ("openai: completion events carry logprobs as parallel arrays", C, prompt(logprobs=1),
     lambda e: all({len(v) for v in c["logprobs"].values()} == {1} for c in choices(e) if c["text"])),
    ("open webui: no event has timings null", CHAT, chat(), lambda e: all(x.get("timings", 0) is not None for x in e[:-1])),
    ("openai: chunks are chat.completion.chunk", CHAT, chat(), lambda e: {x["object"] for x in e[:-1]} == {"chat.completion.chunk"}),
    ("openai: interior chunks of a completion have text and finish_reason null", C, prompt(),
     lambda e: all("text" in c and c["finish_reason"] is None for c in choices(e)[:-1]) and choices(e)[-1]["text"] == ""),
    ("openai python: no event but a failure has a top-level error", C, prompt(), lambda e: not any("error" in x for x in e[:-1])),
    ("vllm bench serve: usage comes in an event of empty choices alone", C, prompt(stream_options={"include_usage": True}),
     lambda e: [bool(x.get("usage")) for x in e[:-1]] == [not x["choices"] for x in e[:-1]]),
    ("anthropic: events by name, no [DONE]", "/v1/messages", chat(),
     lambda e: [x["type"] for x in e] == ["message_start", "content_block_start"] + ["content_block_delta"] * 3 + ["content_block_stop", "message_delta", "message_stop"]),
    ("anthropic: a failure on the way is an error event", "/v1/messages", chat(messages=[{"role": "user", "content": "@@error=1"}], max_tokens=5),
     lambda e: (e[-1]["type"], e[-1]["error"]["type"]) == ("error", "api_error")),
    ("openai: response events are numbered and end with the response", "/v1/responses", {"input": "hello", "max_output_tokens": 2},
     lambda e: [x["sequence_number"] for x in e] == list(range(len(e))) and e[-1]["response"]["output"][0]["content"][0]["text"] != ""),
    ("openai: a response's failure is an error event", "/v1/responses", {"input": "@@error=1", "max_output_tokens": 5}, lambda e: e[-1]["type"] == "error"),
]

ERRORS = [  # name, path, body, status, type, param
    ("openai: stream_options needs stream", C, prompt(stream_options={"include_usage": True}), 400, "invalid_request_error", "stream_options"),
    ("vllm: a number of the wrong type is 400, not 500", C, prompt(temperature="hot"), 400, "invalid_request_error", "temperature"),
    ("openai: stop has at most 4", C, prompt(stop=list("abcde")), 400, "invalid_request_error", "stop"),
    ("openai: n is at most 128", C, prompt(n=129), 400, "invalid_request_error", "n"),
    ("openai: best_of is at least n and at most 20", C, prompt(n=3, best_of=2), 400, "invalid_request_error", "best_of"),
    ("openai: temperature 0 to 2", C, prompt(temperature=2.5), 400, "invalid_request_error", "temperature"),
    ("openai: penalties -2 to 2", C, prompt(presence_penalty=3), 400, "invalid_request_error", "presence_penalty"),
    ("openai: logit_bias -100 to 100", C, prompt(logit_bias={"5": 101}), 400, "invalid_request_error", "logit_bias.5"),
    *((f"vllm: {field} as {value!r} is 400, not 500", C, prompt(**{field: value}), 400, "invalid_request_error", field) for field, value in (
        ("max_tokens", "5"), ("max_tokens", 1.5), ("max_tokens", -1), ("n", "2"), ("n", 0), ("n", True), ("seed", "x"), ("seed", 1.5), ("top_p", "x"),
        ("top_p", 0), ("logprobs", "x"), ("presence_penalty", []), ("frequency_penalty", {}), ("min_tokens", -1), ("top_k", 1.5), ("stop", 5),
        ("stream", "yes"), ("logit_bias", [1]), ("repetition_penalty", "x"), ("ignore_eos", "x"), ("echo", 1))),
    ("openai: a prompt of the wrong type", C, {"prompt": {"a": 1}}, 400, "invalid_request_error", "prompt"),
    ("openai: messages of the wrong type", CHAT, {"messages": "hello"}, 400, "invalid_request_error", "messages"),
    ("openai: temperature is not negative", C, prompt(temperature=-0.1), 400, "invalid_request_error", "temperature"),
    ("openai: penalties not below -2", C, prompt(presence_penalty=-2.1), 400, "invalid_request_error", "presence_penalty"),
    ("openai: logprobs has a bound (100; OpenAI's is 5)", C, prompt(logprobs=101), 400, "invalid_request_error", "logprobs"),
    ("openai: stream_options is an object", C, prompt(stream=True, stream_options=1), 400, "invalid_request_error", "stream_options"),
    ("vllm, tgi: suffix is refused by name", C, prompt(suffix="x"), 400, "invalid_request_error", "suffix"),
    ("openai: top_logprobs has a bound (100; OpenAI's is 20)", CHAT, chat(logprobs=True, top_logprobs=101), 400, "invalid_request_error", "top_logprobs"),
    ("openai: best_of at most 20", C, prompt(best_of=21), 400, "invalid_request_error", "best_of"),
    ("openai: frequency_penalty -2 to 2", C, prompt(frequency_penalty=-2.5), 400, "invalid_request_error", "frequency_penalty"),
    ("openai: logit_bias has token ids as keys", C, prompt(logit_bias={"x": 1}), 400, "invalid_request_error", "logit_bias"),
    ("openai: tools of other types are refused by name", CHAT, chat(tools=[{"type": "web_search"}]), 400, "invalid_request_error", "tools[0]"),
    ("vllm: a pattern that cannot be kept is refused by name", C, prompt(guided_regex="(?=a)b"), 400, "invalid_request_error", "guided_regex"),
    ("vllm: structured_outputs has one form", C, prompt(structured_outputs={"regex": "a", "choice": ["a"]}), 400, "invalid_request_error", "structured_outputs"),
    ("vllm: a form given twice", C, prompt(guided_regex="a", guided_choice=["a"]), 400, "invalid_request_error", "guided_choice"),
    ("pressd: an unknown press lists the valid ones", C, prompt(compression="none_such@0.5"), 400, "invalid_request_error", "compression"),
    ("llama.cpp: prompt and tokens beyond the context", C, prompt(max_tokens=10 ** 6), 400, "invalid_request_error", None),
    ("openai: an unknown route has an error body", "/v1/nope", {}, 404, "not_found_error", None),
    ("vllm: dimensions that the model does not have", "/v1/embeddings", {"input": "a", "dimensions": 3}, 400, "invalid_request_error", "dimensions"),
    ("openai: an unknown encoding_format", "/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "invalid_request_error", "encoding_format"),
    ("openai: an empty input", "/v1/embeddings", {"input": []}, 400, "invalid_request_error", "input"),
    ("openai: a response that refers to an earlier one", "/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, 400, "invalid_request_error", "previous_response_id"),
    ("openai: an input item that is no message", "/v1/responses", {"input": [{"type": {}, "role": "user", "content": ""}]}, 400, "invalid_request_error", "input[0]"),
    ("anthropic: max_tokens is required", "/v1/messages", {"messages": HI}, 400, "invalid_request_error", "max_tokens"),
    ("anthropic: images are refused where they stand", "/v1/messages", chat(messages=[{"role": "user", "content": [{"type": "image"}]}]), 400, "invalid_request_error", "messages[0].content[0]"),
    ("anthropic: an answer begun by the caller", "/v1/messages", chat(messages=[*HI, {"role": "assistant", "content": "I"}]), 400, "invalid_request_error", "messages"),
]


def events_of(body):
    found = []
    for block in body.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):  # with the space
                found.append("[DONE]" if line[6:] == "[DONE]" else json.loads(line[6:]))
    return found


class Wire(ServerTest):
    def test_replies(self):
        for name, path, body, check in REPLIES:
            with self.subTest(name):
                r = self.s.post(path, body)
                self.assertEqual(r.status, 200, r.body)
                self.assertTrue(check(r.json), r.body)

    def test_streams(self):
        for name, path, body, check in STREAMS:
            with self.subTest(name):
                r = self.s.post(path, {**body, "stream": True})
                self.assertEqual((r.status, r.headers["Content-Type"]), (200, "text/event-stream"))  # exactly: aiperf
                self.assertTrue(check(events_of(r.body)), r.body)

    def test_errors(self):
        for name, path, body, status, kind, param in ERRORS:
            with self.subTest(name):
                r = self.s.post(path, body)
                self.assertEqual((r.status, r.error["type"]), (status, kind), r.body)
                self.assertEqual(set(r.error) - {"n_prompt_tokens", "n_ctx"}, {"message", "type", "param", "code"})
                if param:
                    self.assertEqual(r.error["param"], param)
                if path.startswith("/v1/messages"):
                    self.assertEqual(r.json["type"], "error")

    def test_heads(self):
        with self.subTest("nginx: a stream is not held back"):
            r = self.s.post(C, prompt(stream=True))
            self.assertEqual((r.headers["X-Accel-Buffering"], r.headers["Cache-Control"]), ("no", "no-cache"))
        with self.subTest("vllm bench serve: x-request-id comes back"):
            r = self.s.post(C, prompt(), headers={"X-Request-Id": "abc-1", "Content-Type": "application/json"})
            self.assertEqual(r.headers["X-Request-Id"], "abc-1")
        with self.subTest("openai python: streams are chunked and never compressed"):
            r = self.s.post(C, prompt(stream=True), headers={"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"})
            self.assertEqual((r.headers["Transfer-Encoding"], r.headers["Content-Encoding"]), ("chunked", None))
        with self.subTest("openai js: an id is minted where none came"):
            self.assertTrue(self.s.post(C, prompt()).headers["X-Request-Id"])
        with self.subTest("llama.cpp, openai: past the context is context_length_exceeded"):
            r = self.s.post(C, prompt(max_tokens=10 ** 6))
            self.assertEqual((r.status, r.error["code"]), (400, "context_length_exceeded"))
            self.assertEqual((r.error["n_prompt_tokens"], r.error["n_ctx"]), (6, self.s.get("/v1/models").json["data"][0]["max_model_len"]))
        with self.subTest("openai: 405, 413, 415 and bad JSON have error bodies too"):
            self.assertEqual((self.s.get(C).status, set(self.s.get(C).error)), (405, {"message", "type", "param", "code"}))
            r = self.s.post(C, b"x", headers={"Content-Type": "text/html"})
            self.assertEqual((r.status, set(r.error)), (415, {"message", "type", "param", "code"}))
            r = self.s.post(C, b"{", headers={"Content-Type": "application/json"})
            self.assertEqual((r.status, r.error["type"]), (400, "invalid_request_error"))
        with self.subTest("curl: a charset beside the content type, whatever its case"):
            r = self.s.post(C, json.dumps(prompt()).encode(), headers={"content-type": "Application/JSON; charset=utf-8"})
            self.assertEqual(r.status, 200)
        with self.subTest("curl: no content type at all"):
            self.assertEqual(self.s.request("POST", C, json.dumps(prompt())).status, 200)
        with self.subTest("openai: x-stainless headers and an organization are no matter"):
            r = self.s.post(C, prompt(), headers={"X-Stainless-Lang": "python", "X-Stainless-Retry-Count": "1", "OpenAI-Organization": "x"})
            self.assertEqual(r.status, 200)
        with self.subTest("open webui: what Ollama has is no route, and says so in the error's shape"):
            for path in ("/api/version", "/api/tags"):
                r = self.s.get(path)
                self.assertEqual((r.status, r.error["type"]), (404, "not_found_error"))
        with self.subTest("browsers: a preflight is answered; HEAD goes where GET does"):
            self.assertEqual(self.s.request("OPTIONS", CHAT).status, 204)
            r = self.s.request("HEAD", "/v1/models")
            self.assertEqual((r.status, r.body), (200, b""))
        with self.subTest("litellm: the cache's size in heads, for who drops unknown members"):
            r = self.s.post(C, prompt())
            self.assertEqual(int(r.headers["X-KV-Cache-Bytes"]), r.json["usage"]["kv_cache_bytes"])
        with self.subTest("openai: a list of models; one by its name"):
            j = self.s.get("/v1/models").json
            self.assertEqual((j["object"], {"id", "object", "created", "owned_by"} - set(j["data"][0])), ("list", set()))
            self.assertEqual(self.s.get("/v1/models/" + j["data"][0]["id"]).json["id"], j["data"][0]["id"])
        with self.subTest("aiperf: an error has a JSON content type, a stream's too before it begins"):
            for body in (prompt(n=0), prompt(n=0, stream=True)):
                r = self.s.post(C, body)
                self.assertEqual((r.status, r.headers["Content-Type"].split(";")[0]), (400, "application/json"))
        with self.subTest("guidellm: /health before the run"):
            self.assertEqual(self.s.get("/health").status, 200)
        with self.subTest("vllm bench serve, gateways: root, parent and max_model_len of a model"):
            m = self.s.get("/v1/models").json["data"][0]
            self.assertEqual((m["root"], m["parent"], m["object"]), ("fake", None, "model"))
            self.assertGreater(m["max_model_len"], 0)
        with self.subTest("openai: an unknown model is 404 model_not_found"):
            r = self.s.get("/v1/models/none")
            self.assertEqual((r.status, r.error["code"]), (404, "model_not_found"))
        with self.subTest("llm-d: the six families of the model server protocol, at every scrape"):
            text = self.s.get("/metrics").body.decode()
            for family in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "cache_config_info", "lora_requests_info"):
                self.assertIn("vllm:" + family, text)
            self.assertRegex(text, r'vllm:cache_config_info\{[^}]*block_size="\d+"[^}]*num_gpu_blocks="\d+"')
        with self.subTest("openai: a full queue asks to come again"):
            r = self.s.complete("@@busy")
            self.assertEqual((r.status, r.error["type"], r.headers["Retry-After"], r.headers["retry-after-ms"]), (429, "rate_limit_error", "1", "1000"))
            r = self.s.post("/v1/messages", chat(messages=[{"role": "user", "content": "@@busy"}]))
            self.assertEqual((r.status, r.json["type"], r.headers["Retry-After"]), (429, "error", "1"))


class Gone(ServerTest):
    def test_who_leaves_frees(self):
        """ovms #4428: a client that leaves ends its work, whatever the endpoint."""
        import time
        for path, body in (("/v1/messages", chat(messages=[{"role": "user", "content": "@@step=20 x"}], max_tokens=5000, stream=True)),
                           ("/v1/responses", {"input": "@@step=20 x", "max_output_tokens": 5000, "stream": True}),
                           ("/v1/embeddings", {"input": ["@@prefill=60000 x", "@@prefill=60000 y"]})):
            with self.subTest(path):
                raw = json.dumps(body)
                with self.s.connect() as c:
                    c.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n{raw}".encode())
                    end = time.monotonic() + 10
                    while self.s.metric("vllm:num_requests_running") == 0 and time.monotonic() < end:
                        time.sleep(0.02)
                    self.assertGreater(self.s.metric("vllm:num_requests_running"), 0)
                end = time.monotonic() + 10
                while self.s.metric("vllm:num_requests_running") and time.monotonic() < end:
                    time.sleep(0.02)
                self.assertEqual(self.s.metric("vllm:num_requests_running"), 0)


if __name__ == "__main__":
    unittest.main()
