// The OpenAI SDK for JavaScript: each line of a thread as soon as it is whole, then the threads put together.
//
//   npm install openai
//   node examples/with_openai.mjs
//
// OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
import OpenAI from "openai";
import { gatherThreads } from "./gather-threads.mjs";

const baseURL = process.env.OPENAI_BASE_URL ?? "http://localhost:8000/v1";
const stream = new OpenAI({ baseURL, apiKey: "none" }).chat.completions.stream({
  model: "abacus",
  messages: [{ role: "user", content: "a=482*731, b=9047*36" }],
  temperature: 0,
  stream_options: { include_threads: true, include_usage: true },
});

const threads = [];
const unfinished = [];
stream.on("chunk", (chunk) => {
  gatherThreads(threads, chunk);
  for (const { index, content = "" } of chunk.choices[0]?.delta.threads ?? []) {
    const lines = ((unfinished[index] ?? "") + content).split("\n");
    unfinished[index] = lines.pop();
    for (const line of lines) console.log(`thread ${index}: ${line}`);
  }
});

const { choices, usage } = await stream.finalChatCompletion();
for (const { index, title, usage } of threads)
  console.log(`thread ${index} was ${title}, ${usage.completion_tokens} tokens`);
console.log(choices[0].message.content.split("</think>\n").at(-1));
const { num_threads, critical_path_tokens, total_tokens } = usage.forkjoin;
console.log(`${num_threads} threads: ${critical_path_tokens} steps instead of ${total_tokens}`);
