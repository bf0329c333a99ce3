// The OpenAI Node SDK against a running server that has a key and no queue: `make test-node` starts one.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const options = { baseURL: `${process.env.BASE_URL}/v1`, maxRetries: 0 };
const client = new OpenAI({ ...options, apiKey: process.env.API_KEY });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const [{ id: model }] = (await client.models.list()).data;

test("a chat and its stream say the same", async () => {
  const asked = { model, messages, max_tokens: 12, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  let text = "", usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage, whole.usage);
});

test("the stream helper assembles a final completion", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 4, temperature: 0 });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.role, "assistant");
  assert.equal(final.choices[0].finish_reason, "length");
});

test("n, stop, logprobs and seed", async () => {
  const asked = { model, messages, max_tokens: 8, seed: 7, n: 2, logprobs: true, top_logprobs: 2 };
  const [first, second] = await Promise.all([client.chat.completions.create(asked), client.chat.completions.create(asked)]);
  const texts = (answer) => answer.choices.map((choice) => choice.message.content);
  assert.deepEqual(texts(first), texts(second));
  assert.equal(first.choices.length, 2);
  assert.equal(first.choices[0].logprobs.content[0].top_logprobs.length, 2);
  const stopped = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 20, stop: "Paris" });
  assert.ok(!stopped.choices[0].message.content.includes("Paris"));
});

test("errors have their types", async () => {
  await assert.rejects(client.chat.completions.create({ model: "nope", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
  await assert.rejects(client.models.retrieve("nope"), OpenAI.NotFoundError);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a wrong key is an AuthenticationError", async () => {
  const wrong = new OpenAI({ ...options, apiKey: "wrong" });
  await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
});

test("a full server is a 503 that says when to come back", async () => {
  const long = await client.chat.completions.create({ model, messages, n: 4, max_tokens: -1, stream: true });
  const one = { model, messages, max_tokens: 1 };
  await assert.rejects(client.chat.completions.create(one), (error) => {
    assert.ok(error instanceof OpenAI.InternalServerError);
    assert.equal(error.status, 503);
    assert.ok(Number(error.headers.get("retry-after")) > 0);
    return true;
  });
  long.controller.abort();
});
