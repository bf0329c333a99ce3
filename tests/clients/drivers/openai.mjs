// /// script
// dependencies = ["openai", "zod"]
// [tool.driver]
// client = "OpenAI Node"
// apis = ["chat", "responses"]
// ///
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { API, CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, TOO_LONG, V1, WEATHER, drive, refused } from "./drive.mjs";

const client = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 });
const wrong = new OpenAI({ baseURL: V1, apiKey: "wrong", maxRetries: 0 });
const description = "The weather of a city.";
const Weather = z.object({ city: z.string(), degrees: z.int() });
const user = (content) => [{ role: "user", content }];
const whole = ({ function: called }) => [called.name, JSON.parse(called.arguments)];

const chat = (content, { using = client, model = MODEL, ...fields } = {}) =>
  using.chat.completions.create({ model, messages: user(content), ...fields });
const tool = { type: "function", function: { name: "weather", description, parameters: PLACE, strict: true } };

const ofChat = {
  plain: async () => (await chat(CAPITAL)).choices[0].message.content,
  stream: async () => {
    const pieces = [];
    for await (const chunk of await chat(CAPITAL, { stream: true })) pieces.push(chunk.choices[0].delta.content ?? "");
    return pieces;
  },
  tools: async () => {
    const calls = [];
    const parse = (text) => JSON.parse(text);
    const weather = (place) => (calls.push(["weather", place]), DEGREES);
    const running = { type: "function", function: { ...tool.function, function: weather, parse } };
    const runner = client.chat.completions.runTools({
      model: MODEL, messages: user(WEATHER), tools: [running], stream: true,
    });
    return { text: await runner.finalContent(), calls };
  },
  forced: async () => {
    const tool_choice = { type: "function", function: { name: "weather" } };
    return whole((await chat(CAPITAL, { tools: [tool], tool_choice })).choices[0].message.tool_calls[0]);
  },
  structured: async () => {
    const response_format = zodResponseFormat(Weather, "weather");
    const answer = await client.chat.completions.parse({ model: MODEL, messages: user(FORM), response_format });
    return answer.choices[0].message.parsed;
  },
  reasoning: async () => {
    const { message } = (await chat(CAPITAL, { reasoning_effort: "high" })).choices[0];
    return [message.reasoning_content, message.content];
  },
  usage: async () => {
    const { usage } = await chat(CAPITAL);
    return [usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens];
  },
  overflow: () => refused(() => chat(TOO_LONG)),
  unknown_model: () => refused(() => chat(CAPITAL, { model: "nobody" })),
  wrong_key: () => refused(() => chat(CAPITAL, { using: wrong })),
};

const respond = (input, { using = client, model = MODEL, ...fields } = {}) =>
  using.responses.create({ model, input, ...fields });
const flat = { type: "function", name: "weather", description, parameters: PLACE, strict: true };
const callsOf = (answer) => answer.output.filter((item) => item.type === "function_call");

const ofResponses = {
  plain: async () => (await respond(CAPITAL)).output_text,
  stream: async () => {
    const pieces = [];
    for await (const event of await respond(CAPITAL, { stream: true }))
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    return pieces;
  },
  tools: async () => {
    const calls = [], input = user(WEATHER);
    for (;;) {
      const answer = await client.responses.stream({ model: MODEL, input, tools: [flat] }).finalResponse();
      input.push(...answer.output);
      if (!callsOf(answer).length) return { text: answer.output_text, calls };
      for (const call of callsOf(answer)) {
        calls.push([call.name, JSON.parse(call.arguments)]);
        input.push({ type: "function_call_output", call_id: call.call_id, output: DEGREES });
      }
    }
  },
  forced: async () => {
    const [call] = callsOf(await respond(CAPITAL, { tools: [flat], tool_choice: { type: "function", name: "weather" } }));
    return [call.name, JSON.parse(call.arguments)];
  },
  structured: async () => {
    const text = { format: zodTextFormat(Weather, "weather") };
    return (await client.responses.parse({ model: MODEL, input: FORM, text })).output_parsed;
  },
  reasoning: async () => {
    const answer = await respond(CAPITAL, { reasoning: { effort: "high" } });
    const thought = answer.output.find((item) => item.type === "reasoning");
    return [thought.content.map((part) => part.text).join(""), answer.output_text];
  },
  usage: async () => {
    const { usage } = await respond(CAPITAL);
    return [usage.input_tokens, usage.output_tokens, usage.input_tokens_details.cached_tokens];
  },
  overflow: () => refused(() => respond(TOO_LONG)),
  unknown_model: () => refused(() => respond(CAPITAL, { model: "nobody" })),
  wrong_key: () => refused(() => respond(CAPITAL, { using: wrong })),
};

await drive(API === "chat" ? ofChat : ofResponses);
