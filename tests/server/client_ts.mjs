// node client_ts.mjs CLIENT BASE_URL REQUEST: streams through our own client, prints what it told as JSON.
import { pathToFileURL } from "node:url";

const [path, baseUrl, request] = process.argv.slice(2);
const { ForkJoin } = await import(pathToFileURL(path));
const { cancel_at, cancel_threads_at_fork, ...body } = JSON.parse(request);
const abort = new AbortController();

const seen = { events: [], texts: {}, ends: {}, finished: null, error: null };
try {
  const client = new ForkJoin({ baseUrl });
  for await (const event of client.stream(body, { signal: abort.signal })) {
    if (seen.events.at(-1) !== event.type) seen.events.push(event.type);
    if (event.type === "thread_delta") seen.texts[event.thread.index] = (seen.texts[event.thread.index] ?? "") + event.text;
    if (event.type === "finished") seen.finished = event;
    if (event.type === "thread_ended") seen.ends[event.thread.index] = event.finishReason;
    if (event.type === "forked" && cancel_threads_at_fork) {
      for (const thread of event.threads) await client.cancelThread(thread.id);
    }
    if (event.type === cancel_at) abort.abort();
  }
} catch (error) {
  seen.error = { name: error.name, status: error.status, message: error.message };
}
console.log(JSON.stringify(seen));
