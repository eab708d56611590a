// node stream.mjs BASE_URL REQUEST: streams through the npm SDK, prints what arrived as JSON.
import OpenAI from "openai";

const [baseURL, request] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 300_000 });
const stream = await client.chat.completions.create({ ...JSON.parse(request), stream: true });

const seen = { content: "", entries: [], finish_reason: null, usage: null };
for await (const chunk of stream) {
  seen.usage = chunk.usage ?? seen.usage;
  const choice = chunk.choices[0];
  if (!choice) continue;
  seen.content += choice.delta.content ?? "";
  seen.entries.push(...(choice.delta.threads ?? []));
  seen.finish_reason = choice.finish_reason ?? seen.finish_reason;
}
console.log(JSON.stringify(seen));
