// The AI SDK of Vercel through its three kinds of OpenAI models.
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";
import { run } from "./cases.mjs";

const baseURL = `${process.env.QUINTET_URL}/v1`;
const name = process.env.QUINTET_MODEL ?? "smollm2-135m-instruct";
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "quintet", baseURL, supportsStructuredOutputs: true, includeUsage: true });
const models = { chat: openai.chat(name), responses: openai.responses(name), compatible: compatible(name) };
const maxOutputTokens = 300;
const schema = z.object({ name: z.string().max(30), age: z.number().int().min(0).max(120) });
const tools = {
  weather: tool({ description: "The weather of a city", inputSchema: z.object({ city: z.string() }), execute: async () => "sunny" }),
};

const cases = {
  async text(model) {
    const { text, usage } = await generateText({ model, prompt: "Hi", maxOutputTokens });
    return text && usage.totalTokens > 0;
  },
  async "streamed text"(model) {
    const run = streamText({ model, prompt: "Hi", maxOutputTokens });
    let text = "";
    for await (const delta of run.textStream) text += delta;
    return text && (await run.usage).totalTokens > 0;
  },
  async object(model) {
    return schema.parse((await generateObject({ model, schema, prompt: "John is 30", maxOutputTokens })).object);
  },
  async "streamed object"(model) {
    const run = streamObject({ model, schema, prompt: "John is 30", maxOutputTokens });
    for await (const _ of run.partialObjectStream);
    return schema.parse(await run.object);
  },
  async tools(model) {
    const run = await generateText({ model, prompt: "Weather in Paris?", tools, stopWhen: stepCountIs(3), maxOutputTokens });
    return run.steps[0].toolCalls[0].input.city && run.text;
  },
  async "streamed tools"(model) {
    const run = streamText({ model, prompt: "Weather in Paris?", tools, toolChoice: "required", maxOutputTokens });
    const kinds = new Set();
    for await (const part of run.fullStream) {
      if (part.type === "error") throw part.error;
      kinds.add(part.type);
    }
    return kinds.has("tool-input-delta") && kinds.has("tool-call");
  },
};

const all = Object.entries(models).flatMap(([kind, model]) =>
  Object.entries(cases).map(([title, work]) => [`${kind}: ${title}`, () => work(model)]),
);
await run(Object.fromEntries(all));
