# SPDX-License-Identifier: Apache-2.0
"""The official client, unmodified, from the first question to sixteen streams at once."""

import threading
import unittest

import common
import openai
import pressd
import text


def client(s):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{s.port}/v1", api_key="none", max_retries=0, timeout=120 * pressd.PATIENCE)


class Client(unittest.TestCase):
    def setUp(self):
        self.s = common.server()
        self.c = client(self.s)

    def complete(self, prompt, n=24, **extra):
        return self.c.completions.create(model="any", prompt=prompt, max_tokens=n, temperature=0,
                                         extra_body={"ignore_eos": True, **extra})

    def test_press_on_and_off(self):
        prompt = text.prose(40)
        dense = self.complete(prompt)
        pressed = self.complete(prompt, compression={"press": "expected_attention", "ratio": 0.75})
        tokens = dense.usage.prompt_tokens
        self.assertEqual((dense.kv_cache["press"], pressed.kv_cache["press"]), ("none", "expected_attention"))
        self.assertEqual(pressed.kv_cache["bytes_after_prefill"], common.SHAPES["smollm2"].paged(max(1, int(tokens * 0.25))))
        self.assertLess(pressed.usage.kv_cache_bytes, 0.4 * dense.usage.kv_cache_bytes)
        self.assertEqual(dense.usage.kv_cache_bytes_dense, pressed.usage.kv_cache_bytes_dense)
        again = self.complete(prompt, compression=None)
        self.assertEqual(again.choices[0].text, dense.choices[0].text)

    def test_chat_with_the_press_in_the_model_name(self):
        r = self.c.chat.completions.create(model="smollm2@snapkv:0.5", max_tokens=8, temperature=0,
                                           messages=[{"role": "user", "content": text.prose(30)}])
        self.assertEqual((r.kv_cache["press"], r.kv_cache["ratio_requested"]), ("snapkv", 0.5))

    def test_stream_says_what_the_whole_says(self):
        body = dict(model="any", messages=[{"role": "user", "content": "Tell me about the sea."}], max_tokens=20, temperature=0,
                    extra_body={"compression": "knorm@0.3"})
        whole = self.c.chat.completions.create(**body).choices[0].message.content
        self.assertEqual("".join(x.choices[0].delta.content or "" for x in self.c.chat.completions.create(**body, stream=True)), whole)

    def test_logit_bias_and_stop_tokens(self):
        word = self.s.ask("/tokenize", {"prompt": " sea"})["tokens"]
        self.assertEqual(len(word), 1)
        r = self.c.completions.create(model="any", prompt="One two", max_tokens=6, temperature=0, logit_bias={str(word[0]): 100})
        self.assertEqual(r.choices[0].text, " sea" * 6)
        r = self.complete("One two", 6, logit_bias={str(word[0]): 100}, stop_token_ids=word)
        self.assertEqual((r.choices[0].text, r.choices[0].finish_reason, r.usage.completion_tokens), ("", "stop", 0))
        r = self.complete("One two", 6, logit_bias={str(word[0]): 100}, stop_token_ids=word, min_tokens=3)
        self.assertEqual((r.choices[0].finish_reason, r.usage.completion_tokens), ("stop", 3))
        self.assertNotIn(" sea", r.choices[0].text)

    def test_penalties(self):
        """A text that repeats itself stops doing so; log probabilities stay the model's own."""
        prompt = "red, red, red, red, red, red, red, red,"
        plain = self.complete(prompt, 16, logprobs=1)
        self.assertEqual(set(plain.choices[0].text.split()), {"red,"})
        top = plain.choices[0].logprobs.token_logprobs[0]

        for field, cost in (("frequency_penalty", lambda n: 2 * n), ("presence_penalty", lambda n: 2 * (n > 0))):
            r = self.c.completions.create(model="any", prompt=prompt, max_tokens=16, temperature=0, logprobs=20,
                                          extra_body={"ignore_eos": True}, **{field: 2})
            lp, seen = r.choices[0].logprobs, []
            for token, best in zip(lp.tokens, lp.top_logprobs):  # each choice is the best once what it has cost is taken off
                worth = {t: v - cost(seen.count(t)) for t, v in best.items()}
                self.assertGreater(worth[token], max(worth.values()) - 1e-3, (field, seen, best))
                seen.append(token)
            self.assertEqual(max(lp.top_logprobs[0].values()), top, field)
            if field == "frequency_penalty":
                self.assertLess(r.choices[0].text.count("red"), 8)

        r = self.c.completions.create(model="any", prompt=prompt, max_tokens=16, temperature=0, logprobs=1,
                                      extra_body={"ignore_eos": True, "repetition_penalty": 2})
        self.assertLess(r.choices[0].text.count("red"), 8)
        # the first choice already differs: "red" is in the prompt
        self.assertNotEqual(r.choices[0].logprobs.tokens[0], plain.choices[0].logprobs.tokens[0])
        self.assertEqual(max(r.choices[0].logprobs.top_logprobs[0].values()), top)

    def test_min_tokens(self):
        ask = dict(model="any", messages=[{"role": "user", "content": "Say hi."}], temperature=0, max_tokens=64)
        short = self.c.chat.completions.create(**ask)
        self.assertEqual(short.choices[0].finish_reason, "stop")
        n = short.usage.completion_tokens
        longer = self.c.chat.completions.create(**ask, extra_body={"min_tokens": n + 5})
        self.assertGreaterEqual(longer.usage.completion_tokens, n + 5)
        self.assertTrue(longer.choices[0].message.content.startswith(short.choices[0].message.content))

    def test_min_tokens_hold_back_stop_strings(self):
        """A stop string that is whole before min_tokens is text."""
        ask = lambda **more: self.c.completions.create(model="any", prompt="Once upon a time", temperature=0, max_tokens=24, **more)
        free = ask(extra_body={"ignore_eos": True}).choices[0].text
        stop = free[3:6]
        early = ask(stop=stop, extra_body={"ignore_eos": True}).choices[0]
        self.assertEqual((early.text, early.finish_reason), (free[:free.index(stop)], "stop"))
        late = ask(stop=stop, extra_body={"ignore_eos": True, "min_tokens": 8})
        self.assertGreaterEqual(late.usage.completion_tokens, 8)
        self.assertTrue(free.startswith(late.choices[0].text) and stop in late.choices[0].text, late.choices[0].text)
        never = ask(stop=stop, extra_body={"ignore_eos": True, "min_tokens": 24}).choices[0]
        self.assertEqual((never.text, never.finish_reason), (free, "length"))

    def test_choices_share_one_prompt(self):
        """n answers: the prompt is read once, answer i is what seed + i says alone, dense and pressed, whole and streamed."""
        prompt = common.ids(self.s, 700)
        read = lambda: common.pressd.total(self.s.metrics(), "pressd_prompt_tokens_total")
        for press in (None, "expected_attention@0.6"):
            ask = dict(model="any", max_tokens=12, temperature=0.9, extra_body={"ignore_eos": True, "compression": press})
            before = read()
            r = self.c.completions.create(**ask, prompt=prompt, n=4, seed=100)
            self.assertEqual(read() - before, 700)
            self.assertEqual([c.index for c in r.choices], [0, 1, 2, 3])
            self.assertEqual((r.usage.prompt_tokens, r.usage.completion_tokens), (700, 48))
            alone = [self.c.completions.create(**ask, prompt=prompt, seed=100 + i) for i in range(4)]
            self.assertEqual([c.text for c in r.choices], [a.choices[0].text for a in alone])
            self.assertEqual(len({c.text for c in r.choices}), 4)
            self.assertEqual([s["bytes"] for s in r.kv_cache["sequences"]], [a.kv_cache["bytes"] for a in alone])
            self.assertEqual(r.usage.kv_cache_bytes, sum(a.usage.kv_cache_bytes for a in alone))
            texts = [""] * 4
            for x in self.c.completions.create(**ask, prompt=prompt, n=4, seed=100, stream=True):
                texts[x.choices[0].index] += x.choices[0].text
            self.assertEqual(texts, [c.text for c in r.choices])
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5))

    def test_prompts_in_one_request(self):
        prompts = [text.prose(12, 3 * i) for i in range(20)]  # more than the batch has places
        r = self.complete(prompts, 8, compression="snapkv@0.5")
        alone = [self.complete(p, 8, compression="snapkv@0.5") for p in prompts]
        self.assertEqual([c.text for c in r.choices], [a.choices[0].text for a in alone])
        self.assertEqual(r.usage.prompt_tokens, sum(a.usage.prompt_tokens for a in alone))
        self.assertEqual(self.complete([[5, 6, 7]], 3).choices[0].text, self.complete([5, 6, 7], 3).choices[0].text)

    def test_chat_choices(self):
        r = self.c.chat.completions.create(model="any", n=3, seed=1, max_tokens=10, messages=[{"role": "user", "content": "A word?"}])
        self.assertEqual([c.index for c in r.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in r.choices}), 1)

    def test_best_of(self):
        ask = dict(model="any", prompt="The sea", max_tokens=10, seed=3, logprobs=1, extra_body={"ignore_eos": True})
        every = self.c.completions.create(**ask, n=6)
        best = self.c.completions.create(**ask, n=2, best_of=6)
        mean = lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs)
        order = sorted(every.choices, key=mean, reverse=True)
        self.assertEqual([c.text for c in best.choices], [c.text for c in order[:2]])
        self.assertEqual(best.usage.completion_tokens, 60)

    def test_too_many_choices_for_the_pool(self):
        with common.start("smollm2", "--kv-cache-bytes", "64M") as s:
            with self.assertRaises(openai.BadRequestError) as e:
                client(s).completions.create(model="any", prompt=[5] * 1000, max_tokens=16, n=16)
            self.assertEqual((e.exception.code, e.exception.param), ("kv_budget_exceeded", "n"))
            self.assertIn("16 answers", e.exception.body["message"])
            self.assertEqual(len(client(s).completions.create(model="any", prompt=[5] * 1000, max_tokens=2, n=2).choices), 2)

    def test_explain(self):
        r = self.c.post("/compression/explain", cast_to=object,
                        body={"prompt": text.prose(20), "compression": {"press": "keydiff", "ratio": 0.5}, "ratios": [0.9]})
        self.assertEqual((r["object"], r["press"], len(r["layers"])), ("compression.explain", "keydiff", 30))
        kept = {len(h["kept"]) for layer in r["layers"] for h in layer["heads"]}
        self.assertEqual(kept, {max(1, r["scope_tokens"] // 2)})
        self.assertLess(r["forecast"][0]["bytes"], r["bytes"])

    def test_errors_are_the_clients_own(self):
        for kind, param, compression in ((openai.BadRequestError, "compression.press", {"press": "nothing", "ratio": 0.5}),
                                         (openai.BadRequestError, "compression.ratio", {"press": "knorm", "ratio": 1}),
                                         (openai.BadRequestError, "compression.press.params.windows",
                                          {"press": {"name": "snapkv", "params": {"windows": 3}}, "ratio": 0.5})):
            with self.assertRaises(kind) as e:
                self.complete("a b c", compression=compression)
            self.assertEqual((e.exception.status_code, e.exception.param), (400, param))
            self.assertTrue(e.exception.body["message"])
        with self.assertRaises(openai.NotFoundError):
            self.c.post("/nothing", cast_to=object, body={})
        with self.assertRaises(openai.BadRequestError) as e:
            self.complete([5] * 9000)
        self.assertEqual(e.exception.code, "context_length_exceeded")
        self.assertTrue(self.complete("still there?", 2).choices[0].text)

    def test_sixteen_streams(self):
        """Every second one pressed; each says what it says alone."""
        bodies = [dict(model="any", prompt=text.prose(10 + i, i), max_tokens=24, temperature=0,
                       extra_body={"ignore_eos": True, "compression": "adakv(snapkv)@0.5" if i % 2 else None}) for i in range(16)]
        stream = lambda b: "".join(x.choices[0].text for x in self.c.completions.create(**b, stream=True) if x.choices)
        alone = [stream(b) for b in bodies]
        self.assertEqual(common.parallel([lambda b=b: stream(b) for b in bodies]), alone)
        self.assertGreater(len(set(alone)), 8)
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5))

    def test_a_client_that_leaves(self):
        """Its pages are free at once; another stream beside it goes on."""
        other, got = threading.Event(), []

        def reader():
            for x in self.c.completions.create(model="any", prompt="One two", max_tokens=300, temperature=0, stream=True,
                                               extra_body={"ignore_eos": True}):
                got.append(x)
                other.set()

        thread = threading.Thread(target=reader)
        thread.start()
        self.assertTrue(other.wait(30))
        pages = lambda: common.pressd.total(self.s.metrics(), "pressd_kv_cache_pages", state="sequences")
        with self.c.completions.create(model="any", prompt=text.prose(120), max_tokens=4000, temperature=0, stream=True,
                                       extra_body={"ignore_eos": True}) as leaver:
            next(iter(leaver))
            held = pages()
        self.assertTrue(common.wait_until(lambda: pages() < held / 2, 2), "the pages of a client that left are still held")
        thread.join(60)
        self.assertEqual(sum(len(x.choices) and x.choices[0].finish_reason is None for x in got), 300)
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5))


if __name__ == "__main__":
    unittest.main()
