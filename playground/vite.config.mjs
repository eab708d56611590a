import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  // Relative addresses: the page works below any root path, and behind any proxy.
  base: "./",
  resolve: { alias: { "vllm-forkjoin": at("../client-ts/src/index.ts") } },
  build: {
    outDir: at("../server/forkjoin_server/playground/built"),
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    rolldownOptions: { input: [at("index.html"), at("operator.html")] },
    // Nothing inline: the page's policy forbids it.
    assetsInlineLimit: 0,
  },
  // `npm run dev` beside a server on its usual port.
  server: { proxy: { "/v1": "http://localhost:8000", "/metrics": "http://localhost:8000" } },
});
