// node client_ts.mjs CLIENT BASE_URL REQUEST: streams through our own client, prints what it told as JSON.
import { pathToFileURL } from "node:url";

const [path, baseUrl, request] = process.argv.slice(2);
const { ForkJoin } = await import(pathToFileURL(path));
const { cancel_at, ...body } = JSON.parse(request);
const abort = new AbortController();

const seen = { events: [], texts: {}, finished: null, error: null };
try {
  for await (const event of new ForkJoin({ baseUrl }).stream(body, { signal: abort.signal })) {
    if (seen.events.at(-1) !== event.type) seen.events.push(event.type);
    if (event.type === "thread_delta") seen.texts[event.thread.index] = (seen.texts[event.thread.index] ?? "") + event.text;
    if (event.type === "finished") seen.finished = event;
    if (event.type === cancel_at) abort.abort();
  }
} catch (error) {
  seen.error = { name: error.name, status: error.status, message: error.message };
}
console.log(JSON.stringify(seen));
