// OpenAI's own package for Node, with each of its helpers.
import OpenAI, { toFile } from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { run } from "./cases.mjs";

const model = process.env.QUINTET_MODEL ?? "smollm2-135m-instruct";
const openai = new OpenAI({ baseURL: `${process.env.QUINTET_URL}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });
const person = z.object({ name: z.string().max(30), age: z.number().int().min(0).max(120) });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const weather = { type: "function", function: { name: "weather", description: "The weather of a city", parameters } };
const runnable = { type: "function", function: { ...weather.function, parse: JSON.parse, function: async () => "sunny" } };
const grammar = { syntax: "lark", definition: 'start: "SELECT " NAME " FROM " NAME ";"\nNAME: /[a-z]{1,8}/' };
const query = /^SELECT [a-z]{1,8} FROM [a-z]{1,8};$/;
const custom = { type: "custom", custom: { name: "query", format: { type: "grammar", grammar } } };
const flat = { type: "custom", name: "query", format: { type: "grammar", ...grammar } };
const pixels =
  "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAUUlEQVR42u3PMQ0AMAgAMJga5CAbWVPBQdI6aE5XXPbiOAEBAQEBAQEBAQEB" +
  "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYF9H5KYAcAV7LD0AAAAAElFTkSuQmCC";
const image = `data:image/png;base64,${pixels}`;
const chat = (content, fields = {}) => ({ model, messages: [{ role: "user", content }], max_tokens: 100, ...fields });
const answer = (input, fields = {}) => ({ model, input, max_output_tokens: 100, ...fields });
const { completions } = openai.chat;

async function fails(work, kind, holds) {
  try {
    await work;
  } catch (error) {
    return error instanceof kind && holds(error);
  }
  return false;
}

await run({
  async "an answer"() {
    return (await completions.create(chat("Hi"))).choices[0].message.content;
  },
  async "a stream with usage"() {
    let text = "";
    let usage;
    for await (const chunk of await completions.create(chat("Hi", { stream: true, stream_options: { include_usage: true } }))) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage;
    }
    return text && usage.total_tokens;
  },
  async "a stream, gathered"() {
    return completions.stream(chat("Hi")).finalContent();
  },
  async "a call"() {
    const asked = await completions.create(chat("Weather in Paris?", { tools: [weather], tool_choice: "required" }));
    return JSON.parse(asked.choices[0].message.tool_calls[0].function.arguments).city !== undefined;
  },
  async "tools that are run"() {
    return completions.runTools(chat("Weather in Paris?", { tools: [runnable] })).finalContent();
  },
  async "tools that are run, streamed"() {
    return completions.runTools(chat("Weather in Paris?", { tools: [runnable], stream: true })).finalContent();
  },
  async "an answer of a type"() {
    return (await completions.parse(chat("John is 30", { response_format: zodResponseFormat(person, "person") }))).choices[0].message.parsed;
  },
  async "arguments of a type"() {
    const tools = [zodFunction({ name: "person", parameters: person })];
    const asked = await completions.parse(chat("John is 30", { tools, tool_choice: "required" }));
    return asked.choices[0].message.tool_calls[0].function.parsed_arguments;
  },
  async "a custom tool with a grammar"() {
    const asked = await completions.create(chat("All users", { tools: [custom], tool_choice: "required" }));
    return query.test(asked.choices[0].message.tool_calls[0].custom.input);
  },
  async "a custom tool with a grammar, streamed"() {
    let input = "";
    for await (const chunk of await completions.create(chat("All users", { tools: [custom], tool_choice: "required", stream: true })))
      for (const call of chunk.choices[0].delta.tool_calls ?? []) input += call.custom?.input ?? "";
    return query.test(input);
  },
  async "a response"() {
    return (await openai.responses.create(answer("Hi"))).output_text;
  },
  async "a response, streamed"() {
    const stream = openai.responses.stream(answer("Hi"));
    for await (const _ of stream);
    return (await stream.finalResponse()).output_text;
  },
  async "a response of a type"() {
    return (await openai.responses.parse(answer("John is 30", { text: { format: zodTextFormat(person, "person") } }))).output_parsed;
  },
  async "a response with a call"() {
    const tools = [{ type: "function", name: "weather", parameters, strict: true }];
    const asked = await openai.responses.create(answer("Weather in Paris?", { tools, tool_choice: "required" }));
    return asked.output.find((item) => item.type === "function_call").arguments;
  },
  async "a response with a custom tool, streamed"() {
    const stream = openai.responses.stream(answer("All users", { tools: [flat], tool_choice: "required" }));
    const kinds = new Set();
    for await (const event of stream) kinds.add(event.type);
    const call = (await stream.finalResponse()).output.find((item) => item.type === "custom_tool_call");
    return kinds.has("response.custom_tool_call_input.delta") && query.test(call.input);
  },
  async "a picture that is read"() {
    const parts = [{ type: "text", text: "Read." }, { type: "image_url", image_url: { url: image, detail: "high" } }];
    return typeof (await completions.create(chat(parts, { model: "ppocr" }))).choices[0].message.content === "string";
  },
  async "a picture that a response reads"() {
    const content = [{ type: "input_text", text: "Read." }, { type: "input_image", image_url: image, detail: "auto" }];
    return typeof (await openai.responses.create(answer([{ role: "user", content }], { model: "ppocr" }))).output_text === "string";
  },
  async "a picture that is drawn"() {
    const drawn = await openai.images.generate({ model: "emoji-64", prompt: "cat", size: "64x64", response_format: "b64_json" });
    return drawn.data[0].b64_json;
  },
  async "a picture that is drawn, streamed"() {
    const kinds = [];
    for await (const event of await openai.images.generate({ model: "emoji-64", prompt: "cat", stream: true })) kinds.push(event.type);
    return kinds.at(-1) === "image_generation.completed";
  },
  async "a picture that is changed"() {
    const file = await toFile(Buffer.from(pixels, "base64"), "a.png", { type: "image/png" });
    return (await openai.images.edit({ model: "emoji-64", prompt: "red", image: file })).data[0];
  },
  async speech() {
    const spoken = await openai.audio.speech.create({ model: "hibari", voice: "alloy", input: "Hello", response_format: "wav" });
    return (await spoken.arrayBuffer()).byteLength > 1000;
  },
  async "speech, as events"() {
    const fields = { response_format: "pcm", stream_format: "sse" };
    return (await (await openai.audio.speech.create({ model: "hibari", voice: "alloy", input: "Hello", ...fields })).text()).includes("speech.audio.done");
  },
  async embeddings() {
    return (await openai.embeddings.create({ model: "all-minilm-l6-v2", input: ["a", "b"] })).data[1].embedding.length === 384;
  },
  async "a text that goes on"() {
    return (await openai.completions.create({ model, prompt: "The sky is", max_tokens: 8 })).choices[0].text;
  },
  async "the models"() {
    const found = [];
    for await (const each of openai.models.list()) found.push(each.id);
    return found.includes(model) && (await openai.models.retrieve(model)).id === model;
  },
  async "an unknown model"() {
    return fails(completions.create(chat("Hi", { model: "nobody" })), OpenAI.NotFoundError, (error) => error.code === "model_not_found");
  },
  async "a wrong value"() {
    return fails(completions.create(chat("Hi", { temperature: 9 })), OpenAI.BadRequestError, (error) => error.param === "temperature");
  },
  async "too long for a stream"() {
    const asked = completions.create(chat("word ".repeat(20_000), { stream: true }));
    return fails(asked, OpenAI.BadRequestError, (error) => error.code === "context_length_exceeded");
  },
  async "a stream that is aborted"() {
    const stream = await completions.create(chat("A long story", { max_tokens: 1000, stream: true }));
    let chunks = 0;
    for await (const _ of stream) if (++chunks > 3) stream.controller.abort();
    return chunks < 50;
  },
  async "a time that runs out"() {
    const asked = completions.create(chat("A long story", { max_tokens: 1000, ignore_eos: true }), { timeout: 200 });
    return fails(asked, OpenAI.APIConnectionTimeoutError, () => true);
  },
});
