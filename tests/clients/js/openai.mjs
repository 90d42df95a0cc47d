// SPDX-License-Identifier: Apache-2.0
// OpenAI's JavaScript client: node openai.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name a colour." }];
const ask = { model: "any", messages, max_tokens: 6, temperature: 0 };

const tests = {
  async chat() {
    const r = await client.chat.completions.create({ ...ask, compression: "knorm@0.5" });
    assert.equal(r.kv_cache.press, "knorm");
    assert.equal(r.choices[0].message.refusal, null);
  },
  async stream() {
    const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
    let said = "", usage;
    for await (const x of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
      said += x.choices[0]?.delta?.content ?? "";
      usage = x.usage ?? usage;
    }
    assert.equal(said, whole);
    assert.ok(usage.completion_tokens > 0);
    const helper = client.chat.completions.stream(ask);
    assert.equal(await helper.finalContent(), whole);
  },
  async completions() {
    const r = await client.completions.create({ model: "any", prompt: ["The sea is", "A ship"], max_tokens: 3, echo: true, logprobs: 1 });
    assert.equal(r.choices.length, 2);
    assert.equal(r.choices[0].logprobs.token_logprobs[0], null);
    assert.ok(r.choices[1].text.startsWith("A ship"));
  },
  async embeddings() {
    const r = await client.embeddings.create({ model: "any", input: ["a ship", "a boat"] });
    const norm = r.data[0].embedding.reduce((s, x) => s + x * x, 0);
    assert.equal(r.data[1].embedding.length, 576);
    assert.ok(Math.abs(norm - 1) < 1e-5);
  },
  async responses() {
    const body = { model: "any", input: "Name a colour.", max_output_tokens: 6, temperature: 0 };
    const whole = await client.responses.create(body);
    let said = "";
    for await (const e of await client.responses.create({ ...body, stream: true }))
      if (e.type === "response.output_text.delta") said += e.delta;
    assert.equal(said, whole.output_text);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ ...ask, temperature: 3 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
    const s = await client.models.list();
    assert.equal(s.data.length, 1);
    await assert.rejects(client.models.retrieve("none"), OpenAI.NotFoundError);
  },
};
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    console.log("ok " + name);
  } catch (e) {
    console.log(`FAIL ${name}: ${String(e.stack).replaceAll("\n", " | ")}`);
  }
}
