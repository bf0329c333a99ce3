// What every driver of a Node SDK shares; what drive.py is to those of Python.

export const { BASE, KEY, MODEL, API } = process.env;
export const V1 = `${BASE}/v1`;

export const CAPITAL = "What is the capital of France?";
export const WEATHER = "What is the weather in Paris? Use the tool.";
export const FORM = "Tell me the city and its degrees, as JSON.";
export const TOO_LONG = "too long ".repeat(20_000);
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, degrees: { type: "integer" } },
  required: ["city", "degrees"],
  additionalProperties: false,
};
export const PLACE = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
export const DEGREES = "18 degrees";

export class Lacks extends Error {}

export async function refused(call) {
  try {
    await call();
  } catch (error) {
    return { error: error.constructor.name, message: String(error.message) };
  }
  throw new Error("it was not refused");
}

export async function drive(features) {
  for (const [feature, run] of Object.entries(features)) {
    let line;
    try {
      line = { value: await run() };
    } catch (error) {
      line = error instanceof Lacks ? { lacks: error.message } : { failed: error.stack ?? String(error) };
    }
    console.log(JSON.stringify({ feature, ...line }));
  }
}
