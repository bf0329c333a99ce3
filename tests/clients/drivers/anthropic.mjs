// /// script
// dependencies = ["@anthropic-ai/sdk"]
// [tool.driver]
// client = "Anthropic Node"
// apis = ["messages"]
// ///
import Anthropic from "@anthropic-ai/sdk";
import { BASE, CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, SCHEMA, TOO_LONG, WEATHER, drive, refused } from "./drive.mjs";

const client = new Anthropic({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const wrong = new Anthropic({ baseURL: BASE, apiKey: "wrong", maxRetries: 0 });
const asked = (content, fields) => ({ model: MODEL, max_tokens: 2000, messages: [{ role: "user", content }], ...fields });
const ask = (content, fields, using = client) => using.messages.create(asked(content, fields));
const tools = [{ name: "weather", description: "The weather of a city.", input_schema: PLACE }];
const textOf = (answer) => answer.content.filter((block) => block.type === "text").map((block) => block.text).join("");

await drive({
  plain: async () => textOf(await ask(CAPITAL)),
  stream: async () => {
    const pieces = [];
    await client.messages.stream(asked(CAPITAL)).on("text", (piece) => pieces.push(piece)).finalMessage();
    return pieces;
  },
  tools: async () => {
    const calls = [], messages = [{ role: "user", content: WEATHER }];
    for (;;) {
      const answer = await client.messages.stream(asked("", { messages, tools })).finalMessage();
      if (answer.stop_reason !== "tool_use") return { text: textOf(answer), calls };
      const used = answer.content.filter((block) => block.type === "tool_use");
      const results = used.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: DEGREES }));
      calls.push(...used.map(({ name, input }) => [name, input]));
      messages.push({ role: "assistant", content: answer.content }, { role: "user", content: results });
    }
  },
  forced: async () => {
    const [block] = (await ask(CAPITAL, { tools, tool_choice: { type: "tool", name: "weather" } })).content;
    return [block.name, block.input];
  },
  structured: async () => {
    const output_config = { format: { type: "json_schema", schema: SCHEMA } };
    return JSON.parse(textOf(await ask(FORM, { output_config })));
  },
  reasoning: async () => {
    const [thought, text] = (await ask(CAPITAL, { thinking: { type: "enabled", budget_tokens: 1024 } })).content;
    return [thought.thinking, text.text];
  },
  usage: async () => {
    const { usage } = await ask(CAPITAL);
    return [usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens, usage.cache_read_input_tokens];
  },
  overflow: () => refused(() => ask(TOO_LONG)),
  unknown_model: () => refused(() => ask(CAPITAL, { model: "nobody" })),
  wrong_key: () => refused(() => ask(CAPITAL, {}, wrong)),
});
