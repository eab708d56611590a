/** The request as a program: curl, Python with the OpenAI SDK, TypeScript with our client. */

import type { ChatRequest } from "vllm-forkjoin";

export type Language = "curl" | "Python" | "TypeScript";

export const LANGUAGES: Language[] = ["curl", "Python", "TypeScript"];

/** `request` in a language. The API key is never in it: it is read from a variable. */
export function snippet(language: Language, request: ChatRequest, baseUrl: string, hasKey: boolean): string {
  if (language === "curl") return curl(request, baseUrl, hasKey);
  return language === "Python" ? python(request, baseUrl, hasKey) : typescript(request, baseUrl, hasKey);
}

const STREAM = { include_threads: true, include_usage: true };

function curl(request: ChatRequest, baseUrl: string, hasKey: boolean): string {
  const body = JSON.stringify({ ...request, stream: true, stream_options: STREAM }, null, 2);
  const key = hasKey ? `  -H "authorization: Bearer $FORKJOIN_API_KEY" \\\n` : "";
  // In a shell's single quotes a single quote ends them.
  const quoted = body.replaceAll("'", String.raw`'\''`);
  return `curl -sN ${baseUrl}/chat/completions \\\n${key}  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

function python(request: ChatRequest, baseUrl: string, hasKey: boolean): string {
  const { forkjoin, ...plain } = request;
  const known = new Set(["model", "messages", "temperature", "top_p", "max_tokens", "seed", "stop", "response_format"]);
  const args = Object.entries(plain).filter(([name]) => known.has(name));
  const others = Object.entries(plain).filter(([name]) => !known.has(name));
  const extra = { ...(forkjoin ? { forkjoin } : {}), ...Object.fromEntries(others) };
  const lines = args.map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  if (Object.keys(extra).length > 0) lines.push(`    extra_body=${literal(extra, 1)},`);
  return [
    hasKey ? "import os\n\nfrom openai import OpenAI\n" : "from openai import OpenAI\n",
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${hasKey ? `os.environ["FORKJOIN_API_KEY"]` : `"none"`})`,
    "stream = client.chat.completions.create(",
    ...lines,
    "    stream=True,",
    `    stream_options=${literal(STREAM, 1)},`,
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    `        for thread in getattr(choice.delta, "threads", None) or []:`,
    "            print(thread)",
    `        print(choice.delta.content or "", end="")`,
  ].join("\n");
}

function typescript(request: ChatRequest, baseUrl: string, hasKey: boolean): string {
  const key = hasKey ? ", apiKey: process.env.FORKJOIN_API_KEY" : "";
  return [
    `import { ForkJoin } from "vllm-forkjoin";\n`,
    `const client = new ForkJoin({ baseUrl: ${JSON.stringify(baseUrl)}${key} });`,
    `const request = ${JSON.stringify(request, null, 2)};`,
    "for await (const event of client.stream(request)) {",
    `  if (event.type === "forked") console.log("forked", event.threads.map((t) => t.title));`,
    `  if (event.type === "thread_ended") console.log(event.thread.title, event.finishReason);`,
    `  if (event.type === "answer_delta") process.stdout.write(event.text);`,
    "}",
  ].join("\n");
}

/** A JSON value as Python writes it. */
function literal(value: unknown, level: number): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = "    ".repeat(level + 1);
  const items = Array.isArray(value)
    ? value.map((v) => literal(v, level + 1))
    : Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${literal(v, level + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const flat = `${open}${items.join(", ")}${close}`;
  if (flat.length < 80 && !flat.includes("\n")) return flat;
  return `${open}\n${items.map((i) => `${pad}${i},\n`).join("")}${"    ".repeat(level)}${close}`;
}
