// Bundles the tests for node, which reads no TypeScript, and runs them.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

import config from "../vite.config.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "playground-"));
const input = readdirSync(here).filter((name) => name.endsWith(".test.ts")).map((name) => join(here, name));
await build({
  configFile: false,
  logLevel: "error",
  root: here,
  resolve: config.resolve,
  build: { ssr: true, outDir: folder, emptyOutDir: true, rolldownOptions: { input } },
});
const tests = readdirSync(folder).filter((name) => name.includes(".test.")).map((name) => join(folder, name));
const { status } = spawnSync(process.execPath, ["--test", ...tests], { stdio: "inherit" });
rmSync(folder, { recursive: true });
process.exit(status ?? 1);
