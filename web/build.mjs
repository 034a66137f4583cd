// Puts the page and what it needs of onnxruntime-web into dist/, which any web server can serve as it is.
import { cp, mkdir, rm } from "node:fs/promises";

const ort = "node_modules/onnxruntime-web/dist";
await rm("dist", { recursive: true, force: true });
await mkdir("dist/ort", { recursive: true });
for (const file of ["index.html", "page.js", "bundle.js"]) await cp(file, `dist/${file}`);
for (const file of ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"])
  await cp(`${ort}/${file}`, `dist/ort/${file}`);
