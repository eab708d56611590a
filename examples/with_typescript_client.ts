// Our own client for TypeScript: an answer as typed events. In a checkout:
//
//   (cd client-ts && npm ci && npm run build)
//   cd examples && npm ci && npx tsc && node build/with_typescript_client.js
//
// OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
import { ForkJoin } from "vllm-forkjoin";

const client = new ForkJoin({ baseUrl: process.env["OPENAI_BASE_URL"] ?? "http://localhost:8000/v1" });
const messages = [{ role: "user", content: "a=482*731, b=9047*36" }];
const unfinished = new Map<number, string>();

for await (const event of client.stream({ model: "abacus", messages, temperature: 0 })) {
  switch (event.type) {
    case "forked":
      console.log("forks into", event.threads.map((thread) => thread.title).join(" and "));
      break;
    case "thread_delta": {
      const { index } = event.thread;
      const lines = ((unfinished.get(index) ?? "") + event.text).split("\n");
      unfinished.set(index, lines.pop() ?? "");
      for (const line of lines) console.log(`thread ${index}: ${line}`);
      break;
    }
    case "joined":
      console.log("joins after", event.threads.map((thread) => thread.completionTokens).join(" and "), "tokens");
      break;
    case "finished": {
      console.log(event.content.split("</think>\n").at(-1));
      const counts = event.usage?.forkjoin;
      if (counts) console.log(`${counts.num_threads} threads: ${counts.critical_path_tokens} steps instead of ${counts.total_tokens}`);
    }
  }
}
