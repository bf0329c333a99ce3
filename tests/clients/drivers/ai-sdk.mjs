// /// script
// dependencies = ["ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod"]
// [tool.driver]
// client = "Vercel AI SDK"
// apis = ["chat", "responses", "messages"]
// ///
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { API, CAPITAL, DEGREES, FORM, KEY, MODEL, TOO_LONG, V1, WEATHER, drive, refused } from "./drive.mjs";

const PROVIDERS = {
  chat: (apiKey) =>
    createOpenAICompatible({ name: "configi", baseURL: V1, apiKey, includeUsage: true, supportsStructuredOutputs: true }),
  responses: (apiKey) => createOpenAI({ baseURL: V1, apiKey }),
  messages: (apiKey) => createAnthropic({ baseURL: V1, apiKey }),
};
const THINKS = {
  chat: { configi: { reasoningEffort: "high" } },
  responses: { openai: { reasoningEffort: "high", reasoningSummary: "auto", forceReasoning: true } },
  messages: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } },
};
const asked = (prompt, { key = KEY, model = MODEL, ...fields } = {}) =>
  ({ model: PROVIDERS[API](key)(model), prompt, maxRetries: 0, ...fields });
const ask = (prompt, fields) => generateText(asked(prompt, fields));
const description = "The weather of a city.";
const inputSchema = z.object({ city: z.string() });

await drive({
  plain: async () => (await ask(CAPITAL)).text,
  stream: async () => {
    const pieces = [];
    for await (const piece of streamText(asked(CAPITAL)).textStream) pieces.push(piece);
    return pieces;
  },
  tools: async () => {
    const calls = [];
    const execute = async (place) => (calls.push(["weather", place]), DEGREES);
    const weather = tool({ description, inputSchema, execute });
    const result = streamText(asked(WEATHER, { tools: { weather }, stopWhen: stepCountIs(4) }));
    return { text: await result.text, calls };
  },
  forced: async () => {
    const weather = tool({ description, inputSchema });
    const [call] = (await ask(CAPITAL, { tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } })).toolCalls;
    return [call.toolName, call.input];
  },
  structured: async () => {
    const schema = z.object({ city: z.string(), degrees: z.int() });
    return (await ask(FORM, { output: Output.object({ schema }) })).output;
  },
  reasoning: async () => {
    const answer = await ask(CAPITAL, { providerOptions: THINKS[API] });
    return [answer.reasoningText, answer.text];
  },
  usage: async () => {
    const { usage } = await ask(CAPITAL);
    return [usage.inputTokens, usage.outputTokens, usage.inputTokenDetails?.cacheReadTokens ?? usage.cachedInputTokens];
  },
  overflow: () => refused(() => ask(TOO_LONG)),
  unknown_model: () => refused(() => ask(CAPITAL, { model: "nobody" })),
  wrong_key: () => refused(() => ask(CAPITAL, { key: "wrong" })),
});
