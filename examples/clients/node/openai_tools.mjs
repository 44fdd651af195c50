// openai (Node): an answer as an object, and runTools, which calls the functions that the model asks for.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.env.GATEWAY_URL ?? "http://127.0.0.1:8080";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });

const Fleet = z.object({ replicas: z.number().int().min(0).max(99), size: z.enum(["small", "large"]) });
const completion = await client.chat.completions.parse({
  model: "demo",
  messages: [{ role: "user", content: "How many replicas does demo have?" }],
  response_format: zodResponseFormat(Fleet, "fleet"),
});
console.log("parse:", JSON.stringify(completion.choices[0].message.parsed));

const runner = client.chat.completions.runTools({
  model: "demo",
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  max_tokens: 100,
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "Returns the weather in a city.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
        parse: JSON.parse,
        function: ({ city }) => {
          console.log("called:", city);
          return "18 degrees and sunny";
        },
      },
    },
  ],
});
console.log("answer:", await runner.finalContent());
