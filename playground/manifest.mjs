// Writes down what the built files were made from: a test compares it with the sources, without node.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const built = "server/forkjoin_server/playground/built";
const manifest = `${built}/manifest.json`;
const files = ["playground/index.html", "playground/operator.html", "playground/package.json"];
files.push("playground/package-lock.json", "playground/tsconfig.json", "playground/vite.config.mjs", "playground/manifest.mjs");
for (const folder of ["playground/src", "client-ts/src", built]) {
  const inside = readdirSync(join(root, folder), { recursive: true, withFileTypes: true });
  files.push(...inside.filter((f) => f.isFile()).map((f) => join(f.parentPath, f.name).slice(root.length)));
}
const hashes = files
  .filter((file) => file !== manifest)
  .sort()
  .map((file) => [file, createHash("sha256").update(readFileSync(join(root, file))).digest("hex")]);
writeFileSync(join(root, manifest), `${JSON.stringify(Object.fromEntries(hashes), null, 1)}\n`);
