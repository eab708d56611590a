// The pictures of docs/playground.md and the README, and the frames that fifty threads cost.
//
//   python -m tests.browser.pictures docs
import { BASE_URL, ask, button, lanes, launch, opened, over } from "./browser.mjs";

const [folder] = process.argv.slice(2);
const browser = await launch();

/** Of the operator's page, before its picture is taken. */
const NUM_LOOKS = 10;
const SIX = { example: "Six products" };

/** A moment of the answer, as a share of its time. */
async function scrub(page, share) {
  const slider = page.getByRole("slider");
  await slider.fill(String(Math.floor(Number(await slider.getAttribute("max")) * share)));
}

async function picture(name, asked, { share = 1, lane = null, ...options } = {}) {
  const page = await opened(browser, { viewport: { width: 1240, height: 800 }, ...options });
  await ask(page, asked);
  await over(page);
  if (lane !== null) await lanes(page).nth(lane).click();
  if (share < 1) await scrub(page, share);
  await page.screenshot({ path: `${folder}/${name}.png` });
  await page.context().close();
}

/** The operator's page, which sees three requests start. */
async function operator(name, options = {}) {
  const page = await opened(browser, { path: "/playground/operator", viewport: { width: 1240, height: 980 }, ...options });
  const asking = [];
  for (const prompt of ["long", "fifty", "nest"]) {
    const one = await opened(browser);
    await ask(one, { prompt });
    await lanes(one).nth(2).waitFor();
    asking.push(one);
  }
  await page.locator(".families tbody tr").first().waitFor();
  await page.waitForFunction((least) => document.querySelector(".spark polyline")?.points.length >= least, NUM_LOOKS);
  await page.screenshot({ path: `${folder}/${name}.png` });
  for (const one of [...asking, page]) await one.context().close();
}

const NUM_MOMENTS = 40;

/** The lanes at moments of the answer, one picture each, to be put together into an animation. */
async function moments(asked) {
  const page = await opened(browser, { viewport: { width: 1180, height: 800 } });
  await ask(page, asked);
  await over(page);
  const run = await page.locator(".run").boundingBox();
  for (let i = 1; i <= NUM_MOMENTS; i++) {
    await scrub(page, i / NUM_MOMENTS);
    await page.screenshot({ path: `moment-${String(i).padStart(2, "0")}.png`, clip: run });
  }
  await page.context().close();
}

/** How long the page's frames take while fifty threads write, and what its script took of that. */
async function frames() {
  const page = await opened(browser);
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("Performance.enable");
  const metrics = async () => Object.fromEntries((await cdp.send("Performance.getMetrics")).metrics.map((m) => [m.name, m.value]));
  await ask(page, { prompt: "fifty" });
  await lanes(page).nth(50).waitFor();
  const before = await metrics();
  await page.evaluate(() => {
    globalThis.gaps = [];
    let last = performance.now();
    requestAnimationFrame(function frame(now) {
      globalThis.gaps.push(now - last);
      last = now;
      requestAnimationFrame(frame);
    });
  });
  await over(page);
  const after = await metrics();
  const gaps = (await page.evaluate(() => globalThis.gaps)).sort((a, b) => a - b);
  const at = (share) => Number(gaps[Math.floor((gaps.length - 1) * share)].toFixed(1));
  const ms = (name) => Number((((after[name] - before[name]) * 1000) / gaps.length).toFixed(2));
  await page.context().close();
  return {
    num_frames: gaps.length,
    ms_between_frames: { median: at(0.5), p95: at(0.95), max: at(1) },
    ms_a_frame: { script: ms("ScriptDuration"), style: ms("RecalcStyleDuration"), layout: ms("LayoutDuration"), all: ms("TaskDuration") },
  };
}

await picture("playground-light", SIX, { share: 0.8, lane: 2 });
await picture("playground-dark", { prompt: "nest" }, { lane: 4, colorScheme: "dark" });
await picture("playground-compare", { example: "Three products", click: "Compare" });
await operator("playground-operator-light");
await operator("playground-operator-dark", { colorScheme: "dark" });
await moments(SIX);
console.log(JSON.stringify({ server: BASE_URL, ...(await frames()) }, null, 1));
await browser.close();
