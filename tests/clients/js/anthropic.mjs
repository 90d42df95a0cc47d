// SPDX-License-Identifier: Apache-2.0
// Anthropic's JavaScript client: node anthropic.mjs URL
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const ask = { model: "any", max_tokens: 6, temperature: 0, messages: [{ role: "user", content: "Name a colour." }] };

const tests = {
  async stream() {
    const whole = await client.messages.create(ask);
    const stream = client.messages.stream(ask);
    let said = "";
    stream.on("text", (x) => (said += x));
    const final = await stream.finalMessage();
    assert.equal(said, whole.content[0].text);
    assert.deepEqual([final.stop_reason, final.usage.output_tokens], [whole.stop_reason, whole.usage.output_tokens]);
  },
  async count() {
    const n = (await client.messages.countTokens({ model: "any", messages: ask.messages })).input_tokens;
    assert.equal(n, (await client.messages.create(ask)).usage.input_tokens);
  },
  async errors() {
    await assert.rejects(client.messages.create({ ...ask, max_tokens: 0 }), (e) => e instanceof Anthropic.BadRequestError && e.error.type === "error");
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
