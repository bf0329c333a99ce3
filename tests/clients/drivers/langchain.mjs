// /// script
// dependencies = ["@langchain/openai", "@langchain/anthropic", "@langchain/core", "zod"]
// [tool.driver]
// client = "LangChain js"
// apis = ["chat", "responses", "messages"]
// ///
import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import { API, BASE, CAPITAL, DEGREES, FORM, KEY, Lacks, MODEL, TOO_LONG, V1, WEATHER, drive, refused } from "./drive.mjs";

const model = ({ name = MODEL, key = KEY, ...fields } = {}) =>
  API === "messages"
    ? new ChatAnthropic({ model: name, apiKey: key, anthropicApiUrl: BASE, maxRetries: 0, ...fields })
    : new ChatOpenAI({
        model: name, apiKey: key, configuration: { baseURL: V1 }, maxRetries: 0, useResponsesApi: API === "responses", ...fields,
      });
const weather = tool(() => DEGREES, {
  name: "weather", description: "The weather of a city.", schema: z.object({ city: z.string() }),
});

await drive({
  plain: async () => (await model().invoke(CAPITAL)).text,
  stream: async () => {
    const pieces = [];
    for await (const chunk of await model().stream(CAPITAL)) pieces.push(chunk.text);
    return pieces;
  },
  tools: async () => {
    const calls = [], messages = [new HumanMessage(WEATHER)];
    const bound = model().bindTools([weather]);
    for (;;) {
      let whole;
      for await (const chunk of await bound.stream(messages)) whole = whole ? whole.concat(chunk) : chunk;
      messages.push(whole);
      if (!whole.tool_calls.length) return { text: whole.text, calls };
      for (const call of whole.tool_calls) {
        calls.push([call.name, call.args]);
        messages.push(new ToolMessage({ content: DEGREES, tool_call_id: call.id }));
      }
    }
  },
  forced: async () => {
    const tool_choice = API === "messages" ? { type: "tool", name: "weather" } : "weather";
    const [call] = (await model().bindTools([weather], { tool_choice }).invoke(CAPITAL)).tool_calls;
    return [call.name, call.args];
  },
  structured: () =>
    model().withStructuredOutput(z.object({ city: z.string(), degrees: z.int() }), { method: "jsonSchema" }).invoke(FORM),
  reasoning: async () => {
    if (API === "chat") throw new Lacks("ChatOpenAI drops `reasoning_content`");
    const thinks = { thinking: { type: "enabled", budget_tokens: 1024 }, maxTokens: 2000 };
    // It sends `reasoning` to models only whose names it knows for it: an alias of the server.
    const reasons = { name: "gpt-5", reasoning: { effort: "high", summary: "auto" } };
    const answer = await model(API === "messages" ? thinks : reasons).invoke(CAPITAL);
    const thoughts = answer.contentBlocks.filter((block) => block.type === "reasoning");
    return [thoughts.map((block) => block.reasoning).join(""), answer.text];
  },
  usage: async () => {
    const { usage_metadata: used } = await model().invoke(CAPITAL);
    return [used.input_tokens, used.output_tokens, used.input_token_details?.cache_read];
  },
  overflow: () => refused(() => model().invoke(TOO_LONG)),
  unknown_model: () => refused(() => model({ name: "nobody" }).invoke(CAPITAL)),
  wrong_key: () => refused(() => model({ key: "wrong" }).invoke(CAPITAL)),
});
