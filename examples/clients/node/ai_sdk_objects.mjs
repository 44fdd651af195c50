// AI SDK: an object, whole and streamed, and a tool that the model calls.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const url = process.env.GATEWAY_URL ?? "http://127.0.0.1:8080";
const gateway = createOpenAICompatible({ name: "gateway", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const model = gateway("demo");
const output = Output.object({
  schema: z.object({ replicas: z.number().int().min(0).max(99), size: z.enum(["small", "large"]) }),
});

const whole = await generateText({ model, output, prompt: "How many replicas does demo have?" });
console.log("object:", JSON.stringify(whole.output));

const streamed = streamText({ model, output, prompt: "How many replicas does demo have?" });
let last;
for await (const part of streamed.partialOutputStream) last = part;
console.log("stream:", JSON.stringify(last));

const get_weather = tool({
  description: "Returns the weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    console.log("called:", city);
    return "18 degrees and sunny";
  },
});
const answer = await generateText({
  model,
  tools: { get_weather },
  stopWhen: stepCountIs(3),
  prompt: "What is the weather in Paris?",
});
console.log("answer:", answer.text);
