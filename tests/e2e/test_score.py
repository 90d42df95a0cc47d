# SPDX-License-Identifier: Apache-2.0
"""Prompts scored: echo with logprobs, as lm-evaluation-harness asks for it, dense and under a press."""

import math
import threading
import time
import unittest

import common
import openai

# Eight-bit activations, and attention in bf16 for the rows of a prompt: a prompt's rows are multiplied in tiles, an answer's
# one by one.  A mean divergence of 0.002 nats is 0.06 for a token and 0.15 for six, one standard deviation.
NEAR = 0.5


def harness(s, requests, **extra):
    """What lm-evaluation-harness' local-completions backend sends and how it reads the reply: token ids in a batch, one
    token generated; of each choice the numbers behind the context and before that token."""
    reply = s.ask("/v1/completions", {"model": "any", "prompt": [context + more for context, more in requests], "temperature": 0,
                                      "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, **extra})
    out = []
    for choice, (context, more) in zip(sorted(reply["choices"], key=lambda c: c["index"]), requests):
        lp = choice["logprobs"]
        assert len(lp["token_logprobs"]) == len(context) + len(more) + 1 and lp["token_logprobs"][0] is None
        mine = lp["token_logprobs"][len(context):-1]
        greedy = all(t == max(top.values()) for t, top in zip(mine, lp["top_logprobs"][len(context):-1]))
        out.append((sum(mine), greedy))
    return out


class Score(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def answer(self, ids, n, **extra):
        """A greedy answer: its ids and log probabilities, and how far the second best choice was at the closest."""
        r = common.complete(self.s, ids, n, logprobs=2, **extra)
        lp = r["choices"][0]["logprobs"]
        found = [self.s.ask("/tokenize", {"prompt": t})["tokens"] for t in lp["tokens"]]
        assert all(len(f) == 1 for f in found), lp["tokens"]
        margin = min(max(top.values()) - min(top.values()) for top in lp["top_logprobs"])
        return [f[0] for f in found], lp["token_logprobs"], margin

    def test_the_harness(self):
        """A greedy continuation is told as greedy and is worth what it was worth when it was generated; another is not."""
        contexts = [common.ids(self.s, n, n) for n in (1, 40, 130, 300, 600)]
        answers = [self.answer(c, 6) for c in contexts]
        clear = [margin > NEAR for _, _, margin in answers]
        self.assertIn(True, clear)
        other = common.ids(self.s, 6, 77)
        got = harness(self.s, [(c, a[0]) for c, a in zip(contexts, answers)] + [(c, other) for c in contexts])
        for (value, greedy), (_, lps, margin) in zip(got, answers):
            self.assertTrue(greedy or margin <= NEAR)
            common.say(f"generated {sum(lps):.3f}, scored {value:.3f}")
            self.assertLess(abs(value - sum(lps)), NEAR)
        for (value, greedy), (good, _) in zip(got[5:], got):
            self.assertFalse(greedy)
            self.assertLess(value, good)
        alone = [harness(self.s, [(c, a[0])])[0] for c, a in zip(contexts, answers)]
        self.assertEqual(alone, got[:5])  # whoever is in the batch

    def test_a_batch_of_many(self):
        ids = common.ids(self.s, 900)
        got = harness(self.s, [(ids[i:i + 20], ids[i + 20:i + 25]) for i in range(0, 640, 10)])
        self.assertEqual(len(got), 64)
        self.assertTrue(all(math.isfinite(v) and v < 0 for v, _ in got))

    def test_a_pressed_context(self):
        """The continuation behind a pressed context is worth what it was worth when it was generated from what the press
        left, which is not what it is worth after the whole context.  The context's last token is left out of the scope,
        so that the continuation's first one too is expected from the pressed cache."""
        context = common.ids(self.s, 800)
        press = {"press": "knorm", "ratio": 0.8, "scope": {"context_tokens": len(context) - 1}}
        more, lps, _ = self.answer(context, 24, compression=press)
        pressed = harness(self.s, [(context, more)], compression=press)[0]
        dense = harness(self.s, [(context, more)])[0]
        common.say(f"24 tokens: {sum(lps):.3f} as generated under the press, {pressed[0]:.3f} scored so, {dense[0]:.3f} dense")
        self.assertLess(abs(pressed[0] - sum(lps)), 2 * NEAR)
        self.assertGreater(abs(dense[0] - sum(lps)), 4 * NEAR)
        nothing = harness(self.s, [(context, more)], compression={**press, "ratio": 0})[0]
        self.assertLess(abs(nothing[0] - dense[0]), NEAR)

    def test_perplexity_grows_with_the_ratio(self):
        ids = common.ids(self.s, 500)
        context, more = ids[:350], ids[350:]
        worth = []
        for ratio in (0, 0.5, 0.95):
            scope = {"press": "expected_attention", "ratio": ratio, "scope": {"context_tokens": 349}}
            worth.append(harness(self.s, [(context, more)], compression=scope)[0][0] / len(more))
        common.say("mean log probability at ratio 0, 0.5, 0.95:", *(f"{w:.4f}" for w in worth))
        self.assertGreater(worth[0], worth[2])
        self.assertGreater(worth[0] + 0.02, worth[1])

    def test_the_official_client(self):
        c = openai.OpenAI(base_url=f"http://127.0.0.1:{self.s.port}/v1", api_key="none", max_retries=0)
        for prompt in ("The sea is blue.", " é <|im_start|>user\n  two  spaces\n", "日本語 ünï"):
            for n in (0, 3):
                r = c.completions.create(model="any", prompt=prompt, max_tokens=n, echo=True, logprobs=2, temperature=0,
                                         extra_body={"prompt_logprobs": 3})
                choice, lp = r.choices[0], r.choices[0].logprobs
                self.assertTrue(choice.text.startswith(prompt))
                total = r.usage.prompt_tokens + r.usage.completion_tokens
                self.assertEqual({len(lp.tokens), len(lp.token_logprobs), len(lp.top_logprobs), len(lp.text_offset)}, {total})
                self.assertEqual((lp.token_logprobs[0], lp.top_logprobs[0]), (None, None))
                self.assertEqual(lp.text_offset, sorted(lp.text_offset))
                for i, token in enumerate(lp.tokens):
                    if not token.startswith("bytes:"):
                        self.assertEqual(choice.text[lp.text_offset[i]:][:len(token)], token)
                rows = choice.prompt_logprobs
                self.assertEqual(len(rows), r.usage.prompt_tokens)
                for i in range(1, len(rows)):
                    first = next(iter(rows[i].values()))
                    self.assertEqual(first["logprob"], lp.token_logprobs[i])
                    self.assertEqual(sorted(x["rank"] for x in rows[i].values()), [1, 2, 3] + [first["rank"]] * (first["rank"] > 3))
            streamed = list(c.completions.create(model="any", prompt=prompt, max_tokens=3, echo=True, logprobs=2, temperature=0, stream=True))
            self.assertEqual("".join(x.choices[0].text for x in streamed), choice.text)

    def test_chat(self):
        r = self.s.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "prompt_logprobs": 1})
        self.assertEqual(len(r["prompt_logprobs"]), r["usage"]["prompt_tokens"])
        self.assertIsNone(r["prompt_logprobs"][0])

    def test_streams_go_on_while_a_prompt_is_scored(self):
        """Scoring is done in units as reading is: a stream beside it is never held up for long."""
        ids, gaps = common.ids(self.s, 1500), []

        def reader():
            last = None
            for at, event in self.s.stream("/v1/completions", {"prompt": "One", "max_tokens": 300, "ignore_eos": True, "stream": True}):
                if last is not None:
                    gaps.append(at - last)
                last = at

        thread = threading.Thread(target=reader)
        thread.start()
        began = time.monotonic()
        harness(self.s, [(ids, ids[:5])])
        took = time.monotonic() - began
        thread.join(120)
        common.say(f"longest gap {1000 * max(gaps):.0f} ms of {len(gaps)}, scored in {1000 * took:.0f} ms")
        self.assertLess(max(gaps), took / 4)


class Gemma(unittest.TestCase):
    def test_a_bos_before_the_text(self):
        """It is scored and has no place in the echoed text; as an id it has."""
        s = common.server("gemma3")
        ask = {"max_tokens": 0, "echo": True, "logprobs": 1}
        r = s.ask("/v1/completions", {"prompt": "The sea is blue", **ask})
        lp = r["choices"][0]["logprobs"]
        self.assertEqual((r["choices"][0]["text"], lp["tokens"][0], lp["text_offset"][:2]), ("The sea is blue", "<bos>", [0, 0]))
        ids = s.ask("/tokenize", {"prompt": "The sea is blue"})["tokens"]
        by_id = s.ask("/v1/completions", {"prompt": ids, **ask})["choices"][0]
        self.assertEqual((by_id["text"], by_id["logprobs"]["text_offset"][:2]), ("<bos>The sea is blue", [0, 5]))
        self.assertEqual(by_id["logprobs"]["token_logprobs"], lp["token_logprobs"])
        self.assertGreater(sum(lp["token_logprobs"][2:]), -30)


if __name__ == "__main__":
    unittest.main()
