// Debian's Chromium, and the playground in it. BASE_URL and API_KEY say where the server is.
import { chromium } from "playwright-core";

export const { BASE_URL, API_KEY, CHROMIUM = "/usr/bin/chromium" } = process.env;

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
/** As long as an answer may take on a busy machine. */
export const LONG_MS = 120_000;

export function launch() {
  return chromium.launch({ executablePath: CHROMIUM, args: [...FLAGS, ...QUIET] });
}

/** The playground in a tab of its own, with the key in it; it fails on a page that breaks its policy. */
export async function opened(browser, { key = API_KEY, path = "/playground", ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(LONG_MS);
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  page.on("console", (message) => /Content Security Policy/i.test(message.text()) && page.faults.push(message.text()));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(BASE_URL)) page.faults.push(request.url());
  });
  // Once: what the page itself keeps later is not overwritten by a reload.
  if (key) await page.addInitScript((k) => sessionStorage["forkjoin.key"] ?? sessionStorage.setItem("forkjoin.key", JSON.stringify(k)), key);
  await page.goto(`${BASE_URL}${path}`);
  if (key === API_KEY) await page.locator(".server.well").waitFor();
  return page;
}

export const button = (page, name) => page.getByRole("button", { name, exact: true });
export const lanes = (page) => page.getByRole("treeitem");

/** Ask `prompt`, or the example of that name, without waiting for the answer. */
export async function ask(page, { prompt, example, click = "Run" }) {
  if (example) await button(page, example).click();
  if (prompt) await page.getByLabel("Prompt", { exact: true }).fill(prompt);
  await button(page, click).click();
}

/** Until the answer is over: the button says Run again. */
export async function over(page) {
  await button(page, "Run").waitFor();
}
