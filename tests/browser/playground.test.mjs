// The playground in a real browser, on the real server.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, afterEach, before, test } from "node:test";

import { API_KEY, ask, BASE_URL, button, lanes, launch, opened, over } from "./browser.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const CHAT = "**/v1/chat/completions";

let browser;
let pages = [];

before(async () => {
  browser = await launch();
});
after(() => browser.close());
afterEach(async () => {
  for (const page of pages) {
    assert.deepEqual(page.faults, [], "the page broke its policy, raised, or asked elsewhere");
    await page.context().close();
  }
  pages = [];
});

async function open(options) {
  const page = await opened(browser, options);
  pages.push(page);
  return page;
}

/** A figure of the summary, as a number. */
async function figure(page, name) {
  const text = await page.locator(".figure", { hasText: name }).first().locator(".value").innerText();
  return Number.parseFloat(text.replaceAll(",", ""));
}

/** What a screen reader says of each lane, but for its counts. */
const labels = (page) =>
  lanes(page).evaluateAll((items) => items.map((item) => item.querySelector(".name").textContent.replace("◆", "").trim()));

/** What the page kept of an answer, as it saves it. */
async function saved(page) {
  const [download] = await Promise.all([page.waitForEvent("download"), button(page, "Save answer").click()]);
  return { path: await download.path(), recording: JSON.parse(readFileSync(await download.path(), "utf8")) };
}

test("three lanes fork and join while the answer is written", async () => {
  const page = await open();
  await ask(page, { example: "Three products" });
  await lanes(page).nth(3).waitFor();
  await over(page);
  assert.deepEqual(await labels(page), [
    "Answer, done",
    "Thread 1 a=482*731, done",
    "Thread 2 b=9047*36, done",
    "Thread 3 c=218*654, done",
  ]);
  assert.equal(await page.locator(".connectors .fork").count(), 1);
  assert.equal(await page.locator(".connectors .join").count(), 1);
  assert.match(await page.locator(".answer").innerText(), /a=352342 \(2\)\s+b=325692 \(4\)\s+c=142572 \(6\)\s+total ends in 6/);
  const { recording } = await saved(page);
  const { forkjoin } = recording.events.at(-1).usage;
  assert.equal(await figure(page, "Tokens"), forkjoin.total_tokens);
  assert.equal(await figure(page, "Critical path"), forkjoin.critical_path_tokens);
  assert.equal(await figure(page, "Fewer steps"), Number((forkjoin.total_tokens / forkjoin.critical_path_tokens).toFixed(2)));
});

test("threads of threads are lanes below those that forked them", async () => {
  const page = await open();
  await ask(page, { prompt: "nest" });
  await lanes(page).nth(6).waitFor();
  await over(page);
  const levels = await lanes(page).evaluateAll((items) => items.map((item) => Number(item.getAttribute("aria-level"))));
  assert.deepEqual(levels, [1, 2, 2, 3, 4, 4, 3]);
  assert.ok((await labels(page)).includes("Thread 2.1.2 check by 11, done"));
});

test("cancelling stops the request with its threads", async () => {
  const page = await open();
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  await button(page, "Cancel").press("Enter");
  await over(page);
  assert.deepEqual((await labels(page)).filter((label) => !label.endsWith("cancelled")), []);
  await page.waitForFunction(async () => {
    const text = await (await fetch("../metrics")).text();
    return /^forkjoin:threads_running(\{.*\})? 0(\.0)?$/m.test(text);
  });
});

test("one thread is cancelled by keyboard, and the other goes on", async () => {
  const page = await open();
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  await lanes(page).nth(1).click();
  await button(page, "Cancel this thread").press("Enter");
  await page.getByRole("treeitem", { name: /Thread 1 part 1.*, cancelled/ }).waitFor();
  assert.equal(await button(page, "Cancel this thread").count(), 0);
  await page.locator(".detail").filter({ hasText: /State\s*cancelled/ }).waitFor();
  assert.equal(await button(page, "Cancel").count(), 1, "the answer goes on");
  await button(page, "Cancel").press("Enter");
  await over(page);
});

test("a thread that the server can't cancel is told, and the answer goes on", async () => {
  const page = await open();
  await page.route("**/v1/forkjoin/threads/*/cancel", (route) =>
    route.fulfill({ status: 404, contentType: "application/json", body: JSON.stringify({ error: { message: "no such thread" } }) }),
  );
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  await lanes(page).nth(2).click();
  await button(page, "Cancel this thread").press("Enter");
  await page.getByText("The thread was not cancelled").waitFor();
  assert.match(await page.locator(".notice").innerText(), /no such thread/);
  assert.equal(await button(page, "Cancel this thread").count(), 1);
  await button(page, "Cancel").press("Enter");
  await over(page);
});

test("forked and in a row are compared on one time axis", async () => {
  const page = await open();
  await ask(page, { example: "Three products", click: "Compare" });
  await over(page);
  assert.equal(await page.locator(".run").count(), 2);
  assert.deepEqual((await labels(page)).filter((label) => label.startsWith("Answer")), ["Answer, done", "Answer, done"]);
  assert.match(await page.locator(".faster").innerText(), /than in a row/);
  const [forked, row] = await page.locator(".answer").allInnerTexts();
  assert.equal(row.match(/total ends in \d/)[0], forked.match(/total ends in \d/)[0]);
});

test("a finished answer can be scrubbed, and a lane opened with the keyboard alone", async () => {
  const page = await open();
  await ask(page, { example: "Three products" });
  await over(page);
  const total = await figure(page, "Tokens");
  const slider = page.getByRole("slider");
  const { recording } = await saved(page);
  const forkedAt = recording.events.find((event) => event.type === "forked").t;
  await slider.fill(String(Math.ceil(forkedAt) - 1));
  assert.ok((await figure(page, "Tokens")) < total);
  assert.equal(await figure(page, "Threads"), 0);
  assert.equal((await labels(page))[1], "Thread 1 a=482*731, not started yet");
  await slider.press("End");
  assert.equal(await figure(page, "Tokens"), total);
  await lanes(page).first().focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  assert.match(await page.locator(".detail").innerText(), /b=9047\*36[^]*State\s+done[^]*b:325692/);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".detail").count(), 0);
});

test("the view can be paused while the answer goes on", async () => {
  const page = await open();
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  assert.equal(await page.locator(".controls output").getAttribute("aria-live"), "off");
  await button(page, "Pause view").press("Enter");
  const held = await page.locator(".controls output").innerText();
  const slider = page.getByRole("slider");
  const heldAt = Number(await slider.inputValue());
  await page.waitForFunction((t) => document.querySelector("input[type=range]").max > t, heldAt + 500);
  await button(page, "Cancel").press("Enter");
  await over(page);
  assert.equal(await page.locator(".controls output").innerText(), held);
  const { recording } = await saved(page);
  assert.ok(recording.events.some((event) => event.type === "text" && event.t > heldAt), "the answer went on");
});

test("a replay comes to the end by itself", async () => {
  const page = await open();
  await ask(page, { prompt: "a=3*4, b=7*8" });
  await over(page);
  const end = await page.locator(".controls output").innerText();
  await button(page, "Replay").click();
  await button(page, "Replay").waitFor();
  assert.equal(await page.locator(".controls output").innerText(), end);
});

test("the request is shown for curl, Python and TypeScript, without the key", async () => {
  const page = await open();
  await button(page, "A vote of eight").click();
  await button(page, "Copy as…").click();
  for (const [language, part] of [["curl", "curl -sN"], ["Python", "from openai import OpenAI"], ["TypeScript", "new ForkJoin("]]) {
    await page.getByRole("radio", { name: language }).check({ force: true });
    const text = await page.locator(".snippet").innerText();
    assert.ok(text.includes(part) && text.includes("best_of"), text);
    assert.ok(!text.includes(API_KEY));
  }
});

const focused = (page) => page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.tagName);

test("a section stays open around the field that has the focus", async () => {
  const page = await open();
  await page.getByText("Structured output", { exact: true }).click();
  await schemaField(page, "the answer").fill("{");
  await page.keyboard.press("Backspace");
  assert.equal(await schemaField(page, "the answer").evaluate((field) => field === document.activeElement), true);
  await page.getByText("Fork and join", { exact: true }).click();
  await page.getByRole("radio", { name: "The model" }).focus();
  await page.keyboard.press("ArrowRight");
  await page.getByLabel("Title of branch 1").waitFor();
  await page.keyboard.press("ArrowLeft");
  await page.getByLabel("Title of branch 1").waitFor({ state: "detached" });
  assert.equal(await page.getByRole("radio", { name: "The model" }).evaluate((field) => field === document.activeElement), true);
});

test("a dialog gives the focus back, however it is closed", async () => {
  const page = await open();
  for (const close of [() => button(page, "Close").press("Enter"), () => button(page, "Use the key").press("Enter"), () => page.keyboard.press("Escape")]) {
    await button(page, "API key ✓").press("Enter");
    await page.getByRole("dialog").waitFor();
    await close();
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.equal(await focused(page), "API key ✓");
  }
});

test("a form that is wrong is told by a copy too, and opens no dialog later", async () => {
  const page = await open();
  await page.getByLabel("Prompt", { exact: true }).fill("a=1*1");
  await page.getByText("Sampling", { exact: true }).click();
  await page.getByLabel("Temperature").fill("warm");
  await button(page, "Copy as…").click();
  assert.match(await page.getByRole("alert").innerText(), /temperature: expected a number/);
  await page.getByLabel("Temperature").fill("1");
  assert.equal(await page.getByRole("dialog").count(), 0);
  await button(page, "Copy as…").click();
  await page.getByRole("dialog").waitFor();
});

const oneOf = (...values) => ({ type: "object", properties: { a: { enum: values } }, required: ["a"] });
const format = (schema) => ({ type: "json_schema", json_schema: { name: "schema", schema } });
const schemaField = (page, whose) => page.getByLabel(`JSON schema of ${whose}`);

/** Two branches with a title each, and the fields that they and structured output have. */
async function openSchemas(page) {
  await page.getByText("Structured output", { exact: true }).click();
  await page.getByText("Fork and join", { exact: true }).click();
  await page.getByRole("radio", { name: "My branches" }).check({ force: true });
}

test("the answer and each branch obey their schemas, which a copy and a saved file have too", async () => {
  const page = await open();
  await openSchemas(page);
  for (const [n, value] of [[1, "p"], [2, 7]]) {
    await page.getByLabel(`Title of branch ${n}`).fill(`branch ${n}`);
    await schemaField(page, `branch ${n}`).fill(JSON.stringify(oneOf(value)));
  }
  await page.getByLabel(/^Closing/).fill("\n</think>");
  await schemaField(page, "the answer").fill(JSON.stringify(oneOf(true)));
  await page.getByLabel(/holds for the answer only/).check();
  await ask(page, { prompt: "a=482*731" });
  await over(page);
  const text = await page.locator(".answer").innerText();
  assert.ok(['{"a":"p"}', '{"a":7}'].every((part) => text.includes(part)) && text.endsWith('{"a":true}'), text);
  const { recording } = await saved(page);
  assert.deepEqual(recording.request.response_format, format(oneOf(true)));
  const { branches, structured } = recording.request.forkjoin;
  assert.deepEqual(branches.map((branch) => branch.response_format), [format(oneOf("p")), format(oneOf(7))]);
  assert.equal(structured, "answer");
  await button(page, "Copy as…").click();
  for (const language of ["curl", "Python", "TypeScript"]) {
    await page.getByRole("radio", { name: language }).check({ force: true });
    assert.equal((await page.locator(".snippet").innerText()).match(/response_format/g).length, 3);
  }
});

test("what is wrong with a schema stands at its field, whoever says so", async () => {
  const page = await open();
  await openSchemas(page);
  const wrong = async (whose) => {
    const field = schemaField(page, whose);
    await page.locator("textarea[aria-invalid=true]").waitFor();
    assert.equal(await field.getAttribute("aria-invalid"), "true");
    assert.equal(await page.locator("textarea[aria-invalid=true]").count(), 1);
    return page.locator(`[id="${await field.getAttribute("aria-describedby")}"]`).innerText();
  };
  await page.getByLabel("Title of branch 1").fill("");
  await schemaField(page, "branch 2").fill("[]");
  await ask(page, { prompt: "a=482*731" });
  assert.match(await wrong("branch 2"), /expected a JSON object/);
  await schemaField(page, "branch 2").fill(`{"type": "nonsense"}`);
  assert.equal(await page.locator("textarea[aria-invalid=true]").count(), 0);
  await button(page, "Run").click();
  assert.match(await wrong("branch 2"), /^forkjoin\.branches\[0\]\.response_format: .*schema/);
  await over(page);
  await page.getByRole("radio", { name: "The model" }).check({ force: true });
  await schemaField(page, "the answer").fill("{");
  await button(page, "Run").click();
  assert.match(await wrong("the answer"), /text that is no JSON/);
  await schemaField(page, "the answer").fill(`{"type": "nonsense"}`);
  await button(page, "Run").click();
  assert.match(await wrong("the answer"), /schema/);
});

test("a saved answer opens again as it was", async () => {
  const page = await open();
  await ask(page, { example: "Three products" });
  await over(page);
  const { path } = await saved(page);
  const other = await open();
  await other.locator("input[type=file]").setInputFiles(path);
  await lanes(other).nth(3).waitFor();
  assert.deepEqual(await labels(other), await labels(page));
  assert.equal(await other.locator(".summary").innerText(), await page.locator(".summary").innerText());
  await other.locator("input[type=file]").setInputFiles({ name: "no.json", mimeType: "application/json", buffer: Buffer.from("{}") });
  assert.match(await other.getByRole("alert").innerText(), /expected a recording/);
});

test("a file that can't be read or drawn leaves a page that works, also behind a reload", async () => {
  const page = await open();
  const recording = { format: "forkjoin-recording", version: 1, request: {}, startedAt: "", parentWaits: true, trigger: null };
  const openFile = (events) => {
    const buffer = Buffer.from(JSON.stringify({ ...recording, events }));
    return page.locator("input[type=file]").setInputFiles({ name: "r.json", mimeType: "application/json", buffer });
  };
  const forkjoin = { total_tokens: 1, critical_path_tokens: 1, vote: { index: "length" } };
  await openFile([{ t: 1, type: "finished", reason: "stop", usage: { completion_tokens: 1, forkjoin } }]);
  await page.getByText(/can’t be opened.*vote\.index/).waitFor();
  // Deeper than any stack: each thread has forked the next one.
  const fork = (index) => ({ t: 1, type: "forked", parent: index - 1, threads: [{ index, id: "", title: "" }] });
  await openFile(Array.from({ length: 20_000 }, (_, index) => fork(index)));
  await page.getByText(/can’t be shown/).waitFor();
  await openFile([fork(0)]);
  await page.locator(".notice", { hasText: "its recording has no end" }).waitFor();
  await page.reload();
  await lanes(page).nth(1).waitFor();
  await over(page);
});

test("a page without a key, or with a wrong one, asks for it", async () => {
  const page = await open({ key: null });
  await page.getByRole("dialog").waitFor();
  await page.getByLabel(/key that this server/).fill("wrong");
  await button(page, "Use the key").click();
  await page.getByRole("dialog").getByRole("alert").waitFor();
  await page.getByLabel(/key that this server/).fill(API_KEY);
  await button(page, "Use the key").click();
  await page.locator(".server.well").waitFor();
  assert.equal(await page.evaluate(() => localStorage.length), 0);
});

test("a late answer to an earlier key changes nothing", async () => {
  const page = await open({ key: null });
  let tell;
  const held = new Promise((resolve) => (tell = resolve));
  await page.route("**/v1/models", async (route) => {
    if (route.request().headers().authorization === "Bearer slow") await held;
    await route.continue();
  });
  for (const key of ["slow", API_KEY]) {
    if (key === API_KEY) await button(page, "API key ✓").click();
    await page.getByLabel(/key that this server/).fill(key);
    await button(page, "Use the key").click();
  }
  await page.locator(".server.well").waitFor();
  const answered = page.waitForResponse("**/v1/models");
  tell();
  await (await answered).finished();
  await page.waitForTimeout(200);
  assert.equal(await page.getByRole("dialog").count(), 0);
  assert.equal(await page.locator(".server.well").count(), 1);
});

/** Ask, with `fail` in the place of the server's first answer, whose second one waits until `told` is read. */
async function askTwice(page, fail, told) {
  let numAsked = 0;
  let read;
  const isRead = new Promise((resolve) => (read = resolve));
  await page.route(CHAT, async (route) => {
    numAsked += 1;
    if (numAsked === 1) return fail(route);
    await isRead;
    return route.continue();
  });
  await ask(page, { example: "Three products" });
  await page.getByText(told).waitFor();
  read();
  await over(page);
  assert.equal(numAsked, 2);
  assert.equal((await labels(page)).length, 4);
}

test("a server that is gone is told, and asked again", async () => {
  const page = await open();
  await askTwice(page, (route) => route.abort("connectionrefused"), /does not answer\. Trying again in/);
});

test("a server that stays away is an error", async () => {
  const page = await open();
  await page.route(CHAT, (route) => route.abort("connectionrefused"));
  await ask(page, { example: "Three products" });
  await over(page);
  assert.match(await page.getByRole("alert").innerText(), /The server does not answer/);
});

test("an overloaded server is asked again when it says so", async () => {
  const page = await open();
  const body = JSON.stringify({ error: { message: "too many requests wait", code: 503 } });
  const busy = { status: 503, headers: { "retry-after": "2" }, contentType: "application/json", body };
  await askTwice(page, (route) => route.fulfill(busy), /too busy\. Trying again in/);
});

test("an answer that has not begun says how long it waits, and for what", async () => {
  const page = await open();
  let begin;
  const held = new Promise((resolve) => (begin = resolve));
  let id;
  await page.route(CHAT, async (route) => {
    id = `chatcmpl-${route.request().postDataJSON().request_id}-fj`;
    await held;
    await route.continue();
  });
  await page.route("**/v1/forkjoin/families", (route) => {
    const families = [{ request_id: id, state: "waiting", waits_for: ["room"] }];
    return route.fulfill({ contentType: "application/json", body: JSON.stringify({ engines: [{ families }] }) });
  });
  await ask(page, { example: "Three products" });
  await page.getByText(/^Waiting for the server, [1-9]\d* s\. No slot is free, or too few KV blocks/).waitFor();
  assert.deepEqual(await labels(page), ["Answer, waits for room"]);
  await page.locator(".lane .span.waiting .why", { hasText: "waits for room" }).waitFor();
  begin();
  await lanes(page).nth(3).waitFor();
  await over(page);
  assert.equal(await page.getByText("Waiting for the server").count(), 0);
  const { recording } = await saved(page);
  assert.equal("request_id" in recording.request, false);
  assert.deepEqual(recording.events.filter((e) => e.type === "waits" && e.index === -1).map((e) => e.for), ["room"]);
});

test("a request that the server refuses is told in its words", async () => {
  const page = await open();
  await page.getByText("Sampling", { exact: true }).click();
  await page.getByLabel("More fields (JSON)").fill(`{"forkjoin": {"max_fork": 1}}`);
  await ask(page, { prompt: "a=1*1" });
  await over(page);
  assert.match(await page.getByRole("alert").innerText(), /refused the request[^]*max_fork/);
});

test("Ctrl+Enter asks only where Run could be pressed", async () => {
  const page = await open();
  let numAsked = 0;
  page.on("request", (request) => (numAsked += request.url().endsWith("/chat/completions") ? 1 : 0));
  const prompt = page.getByLabel("Prompt", { exact: true });
  await prompt.fill("");
  await prompt.press("Control+Enter");
  await prompt.fill("long");
  await prompt.press("Control+Enter");
  await lanes(page).nth(2).waitFor();
  await prompt.press("Control+Enter");
  await button(page, "Cancel").press("Enter");
  await over(page);
  assert.equal(numAsked, 1);
});

test("a stream that breaks off keeps what came", async () => {
  const page = await open();
  const body = `data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\ndata: {"choi`;
  await page.route(CHAT, (route) => route.fulfill({ contentType: "text/event-stream", body }));
  await ask(page, { example: "Three products" });
  await over(page);
  assert.match(await page.getByRole("alert").innerText(), /broke off/);
  assert.match(await page.locator(".answer").innerText(), /half/);
});

test("a fork that could not be read is told", async () => {
  const page = await open();
  await ask(page, { prompt: "malformed" });
  await over(page);
  assert.match(await page.locator(".notice").innerText(), /A fork did not happen/);
  assert.equal((await labels(page)).length, 1);
});

test("a reload in the middle keeps what came, and says so", async () => {
  const page = await open();
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  await page.reload();
  await page.getByText(/Interrupted\./).waitFor();
  assert.deepEqual((await labels(page)).filter((label) => !label.endsWith("interrupted")), []);
  assert.equal((await labels(page)).length, 3);
  assert.equal(await page.getByLabel("Prompt", { exact: true }).inputValue(), "long");
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing serious in the ${colorScheme} page`, async () => {
    const page = await open({ colorScheme });
    await serious(page, "empty");
    await button(page, "A vote of eight").click();
    await serious(page, "all fields");
    await ask(page, { example: "Three products", click: "Compare" });
    await over(page);
    await lanes(page).nth(1).click();
    await serious(page, "an answer");
    await button(page, "Copy as…").click();
    await serious(page, "a dialog");
  });
}

test("in high contrast bars and choices can still be seen", async () => {
  const page = await open({ forcedColors: "active" });
  await page.getByText("Fork and join", { exact: true }).click();
  const background = (element) => getComputedStyle(element).backgroundColor;
  const ofPage = await page.locator("html").evaluate(background);
  assert.notEqual(await page.locator(".segmented input:checked + span").evaluate(background), ofPage);
  await ask(page, { example: "Three products" });
  await over(page);
  assert.notEqual(await page.locator(".lane .span.running").first().evaluate(background), ofPage);
});

/** Fails on what axe finds serious or critical. It runs in a world of its own, beside the page's policy. */
async function serious(page, where) {
  const cdp = await page.context().newCDPSession(page);
  const { frameTree } = await cdp.send("Page.getFrameTree");
  const { executionContextId: contextId } = await cdp.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id });
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await cdp.send("Runtime.evaluate", { expression, contextId, awaitPromise: true, returnByValue: true });
    assert.equal(exceptionDetails, undefined);
    return result.value;
  };
  await evaluate(`${AXE};0`);
  const found = await evaluate(`axe.run().then((r) => r.violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => v.id + ": " + v.nodes.map((n) => n.target + " " + n.failureSummary).join("; ")))`);
  assert.deepEqual(found, [], where);
}

test("at 360 pixels nothing is wider than the page", async () => {
  const page = await open({ viewport: { width: 360, height: 740 } });
  await ask(page, { example: "Six products" });
  await over(page);
  await lanes(page).nth(1).click();
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
});

test("fifty threads are fifty lanes, and their text arrives whole", async () => {
  const page = await open();
  await ask(page, { prompt: "fifty" });
  await lanes(page).nth(50).waitFor();
  await over(page);
  assert.equal((await labels(page)).filter((label) => label.endsWith("done")).length, 51);
  await lanes(page).nth(50).click();
  assert.match(await page.locator(".detail pre").innerText(), /part 50 of fifty/);
});

test("the operator's page shows what ran, and only reads", async () => {
  const page = await open();
  await ask(page, { prompt: "nest" });
  await over(page);
  const asked = [];
  page.on("request", (request) => asked.push(`${request.method()} ${new URL(request.url()).pathname}`));
  await page.getByRole("link", { name: "Operator" }).click();
  const ended = page.getByRole("table", { name: "Threads, by their end" });
  await ended.getByRole("row").filter({ hasText: /^stop/ }).waitFor();
  await page.locator(".spark", { hasText: "KV blocks in use" }).locator(".value", { hasText: "%" }).waitFor();
  await serious(page, "operator");
  for (const path of ["/metrics", "/v1/forkjoin/families"]) assert.ok(asked.includes(`GET ${path}`));
  assert.deepEqual(asked.filter((one) => !/^GET \/(metrics|v1\/forkjoin\/families|playground\/.*)$/.test(one)), []);
});

/** The operator's page beside a request that is held open: its two threads write as much as a context holds. */
async function besideLong(options) {
  const page = await open();
  await ask(page, { prompt: "long" });
  await lanes(page).nth(2).waitFor();
  const operator = await open({ path: "/playground/operator", ...options });
  return { page, operator };
}

test("the operator's page shows a family that runs, its threads and its KV blocks, until it is cancelled", async () => {
  const { page, operator } = await besideLong();
  const row = operator.getByRole("table", { name: /famil/ }).getByRole("row").filter({ hasText: "forked" });
  await row.filter({ hasText: "2 running" }).waitFor();
  const cells = await row.getByRole("cell").allInnerTexts();
  const [now, most, expected] = cells.at(-1).split(", ").map(Number);
  assert.ok(now > 0 && now <= most && expected > 0, cells.at(-1));
  await operator.getByText(/% fork, the widest fork into/).waitFor();
  await serious(operator, "families");
  await button(page, "Cancel").click();
  await operator.getByRole("table", { name: /^0 families/ }).waitFor();
});

/** What the server said of a completion that is kept for so many seconds. */
async function keep(seconds) {
  const response = await fetch(`${BASE_URL}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${API_KEY}` },
    body: JSON.stringify({ messages: [{ role: "user", content: "long ".repeat(40) }], max_tokens: 4, forkjoin: { enabled: false, keep: seconds } }),
  });
  assert.equal(response.status, 200, await response.clone().text());
  return response.json();
}

test("the operator's page shows what is kept, until it is released", async () => {
  const { id, usage } = await keep(600);
  assert.equal(usage.forkjoin.kept.refused, null);
  const page = await open({ path: "/playground/operator" });
  const row = page.getByRole("table", { name: "Kept answers" }).getByRole("row").filter({ hasText: id });
  await row.waitFor();
  const [seconds, tokens, blocks, continued] = await row.getByRole("cell").allInnerTexts();
  assert.match(seconds, /^9 min|^10 min/);
  assert.equal(tokens, String(usage.forkjoin.kept.tokens));
  assert.ok(Number(blocks) > 0 && continued === "0", `${blocks}, ${continued}`);
  await page.getByText(new RegExp(`^1 answer, ${blocks} of \\d+ KV blocks`)).waitFor();
  await serious(page, "kept");
  const path = `${BASE_URL}/v1/forkjoin/kept/${id}/release`;
  const released = await fetch(path, { method: "POST", headers: { Authorization: `Bearer ${API_KEY}` } });
  assert.equal(released.status, 200);
  await page.getByText(/^0 answers, 0 of/).waitFor();
});

test("the operator's page says what keeps the families from it, and shows the metrics on", async () => {
  const page = await open();
  const error = { message: "expected every engine to answer within 5 s", code: 503 };
  await page.route("**/v1/forkjoin/families", (route) => route.fulfill({ status: 503, contentType: "application/json", body: JSON.stringify({ error }) }));
  await page.getByRole("link", { name: "Operator" }).click();
  await page.getByText("The server answered 503: expected every engine to answer").waitFor();
  await page.locator(".server.well").waitFor();
  await page.unroute("**/v1/forkjoin/families");
  await page.getByRole("table", { name: /famil/ }).waitFor();
});

test("the operator's page says that a server hangs, and what the fullest engine holds", async () => {
  const page = await open();
  const metrics = [0.7, 0.9].map((share, i) => `vllm:kv_cache_usage_perc{engine="${i}"} ${share}\n`).join("");
  let numAsked = 0;
  await page.route("**/metrics", (route) => (numAsked++ === 0 ? route.fulfill({ contentType: "text/plain", body: metrics }) : undefined));
  await page.getByRole("link", { name: "Operator" }).click();
  await page.locator(".spark", { hasText: "KV blocks in use" }).getByText("90 %").waitFor();
  await page.locator(".server.trouble", { hasText: "does not answer" }).waitFor();
  await page.unroute("**/metrics");
});

test("the operator's page without a key shows the metrics, and asks for the key of the families", async () => {
  const page = await open({ key: null, path: "/playground/operator" });
  await button(page, "Enter an API key").click();
  await page.getByLabel(/key that this server/).fill(API_KEY);
  await button(page, "Use the key").click();
  await page.getByRole("table", { name: /famil/ }).waitFor();
});

test("at 360 pixels the operator's page is no wider", async () => {
  const { operator } = await besideLong({ viewport: { width: 360, height: 740 } });
  await operator.getByRole("table", { name: /famil/ }).waitFor();
  assert.equal(await operator.evaluate(() => document.documentElement.scrollWidth), 360);
});
