// node helper.mjs BASE_URL REQUEST: a chat completion through the npm SDK's helper, its threads put together.
import OpenAI from "openai";
import { gatherThreads } from "./gather-threads.mjs";

const [baseURL, request] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 300_000 });
const stream = client.chat.completions.stream(JSON.parse(request));
const threads = [];
stream.on("chunk", (chunk) => gatherThreads(threads, chunk));
const completion = await stream.finalChatCompletion();
console.log(JSON.stringify({ threads, message: completion.choices[0].message }));
