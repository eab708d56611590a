// node responses.mjs BASE_URL REQUEST: /v1/responses through the npm SDK, by loop and by helper, as JSON.
import OpenAI from "openai";

const [baseURL, request] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 300_000 });
const body = JSON.parse(request);

const said = {};
for await (const event of await client.responses.create({ ...body, stream: true })) {
  if (event.type === "response.output_text.delta" || event.type === "response.reasoning_text.delta")
    said[event.output_index] = (said[event.output_index] ?? "") + event.delta;
}

// The helper throws at a delta whose item or part it has not seen.
const helper = client.responses.stream(body);
const snapshots = [];
helper.on("response.output_text.delta", ({ snapshot }) => (snapshots[0] = snapshot));
const final = await helper.finalResponse();

const whole = await client.responses.create(body);
console.log(JSON.stringify({ said, snapshot: snapshots[0], final, whole }));
