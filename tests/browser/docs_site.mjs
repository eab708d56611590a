// Searches the built docs site from a disk, and switches it to dark: FOLDER holds the site. Prints what it saw as JSON.
import { pathToFileURL } from "node:url";
import { LONG_MS, launch } from "./browser.mjs";

const browser = await launch();
const page = await (await browser.newContext({ colorScheme: "light" })).newPage();
page.setDefaultTimeout(LONG_MS);
const elsewhere = [];
page.on("request", (request) => /^https?:/.test(request.url()) && elsewhere.push(request.url()));
await page.goto(pathToFileURL(`${process.env.FOLDER}/index.html`).href);

const scheme = () => page.evaluate(() => document.body.getAttribute("data-md-color-scheme"));
const schemes = [await scheme()];
for (const name of ["Switch to light", "Switch to dark"]) {
  await page.locator(`label[title="${name}"]`).click();
  schemes.push(await scheme());
}

await page.locator(".md-search__input").fill("join-ahead-tokens");
const first = page.locator(".md-search-result__link").first();
await first.waitFor();
const found = await first.getAttribute("href");
console.log(JSON.stringify({ schemes, found, elsewhere }));
await browser.close();
