// A bundle in the browser: the same parts as the Python Runtime's, opened when they are first needed. Every file is
// checked against its SHA-256 of the manifest before it is opened.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

export class BundleError extends Error {}

/** Read files by name: from a URL of a folder. */
export function fromUrl(url) {
  const folder = new URL(url.endsWith("/") ? url : `${url}/`, document.baseURI);
  return async (name) => {
    const answer = await fetch(new URL(encodeURIComponent(name), folder));
    if (!answer.ok) throw new BundleError(`${name}: the server answers ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  };
}

/** Read files by name: from a folder that the user chose. */
export function fromFiles(files) {
  const byName = new Map([...files].map((file) => [file.name, file]));
  return async (name) => {
    if (!byName.has(name)) throw new BundleError(`${name}: missing in the chosen folder`);
    return new Uint8Array(await byName.get(name).arrayBuffer());
  };
}

export class Bundle {
  static async load(read) {
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    } catch (error) {
      if (error instanceof BundleError) throw error;
      throw new BundleError(`manifest.json: not valid JSON (${error.message})`);
    }
    if (manifest?.format !== "mmvae_fast.onnx")
      throw new BundleError(`manifest.json: format is ${manifest?.format}, expected mmvae_fast.onnx`);
    return new Bundle(read, manifest);
  }

  constructor(read, manifest) {
    this.read = read;
    this.manifest = manifest;
    this.latentDim = manifest.latent_dim;
    this.modalities = new Map(manifest.modalities.map((m) => [m.name, m]));
    this.sessions = new Map();
    this.last = Promise.resolve(); // WebAssembly runs one call at a time
  }

  /** Names of the modalities whose decoders take the shared latent and give all of a sample at once. */
  get decodable() {
    return [...this.modalities.keys()].filter((name) => {
      const part = this.manifest.parts[`decoder_${name}`];
      return part && part.inputs.length === 1 && part.inputs[0].shape[1] === this.latentDim;
    });
  }

  /** Mean of the posterior [D] of one row; inputs: name -> typed array of one sample. */
  async encode(inputs) {
    const fusion = this.manifest.parts.fusion;
    const [, count, width] = fusion.inputs.find((t) => t.name === "mu").shape;
    const mu = new Float32Array(count * width);
    const logvar = new Float32Array(count * width);
    const mask = new Uint8Array(count);
    for (const [i, [name, m]] of [...this.modalities].entries()) {
      if (!(name in inputs)) continue;
      const x = new ort.Tensor(m.dtype, inputs[name], [1, ...m.shape]);
      const found = await this.run(`encoder_${name}`, { x });
      mu.set(found.mu.data, i * width);
      logvar.set(found.logvar.data, i * width);
      mask[i] = 1;
    }
    const feeds = {
      mu: new ort.Tensor("float32", mu, [1, count, width]),
      logvar: new ort.Tensor("float32", logvar, [1, count, width]),
      mask: new ort.Tensor("bool", mask, [1, count]),
    };
    for (const t of fusion.inputs) {
      if (t.name in feeds) continue; // the rest is noise, of which the mean takes none
      const shape = t.shape.map((n) => (typeof n === "string" ? 1 : n));
      const size = shape.reduce((a, b) => a * b, 1);
      feeds[t.name] = new ort.Tensor("float32", new Float32Array(size), shape);
    }
    const found = await this.run("fusion", feeds);
    return Float32Array.from((found.point ?? found.joint_mu).data);
  }

  /** One sample of a modality from a point [D] of the latent space, as a typed array. */
  async decode(z, name) {
    const point = new ort.Tensor("float32", Float32Array.from(z), [1, this.latentDim]);
    return (await this.run(`decoder_${name}`, { z: point }, ["prediction"])).prediction.data;
  }

  /** Words of token ids, without padding; undefined where the bundle has no words. */
  text(name, ids) {
    const words = this.modalities.get(name).vocabulary;
    return words && [...ids].filter((id) => id !== 0n).map((id) => words[Number(id)]).join(" ");
  }

  /** Token ids of a text: words by white space, padded with 0; unknown ones are 1. */
  tokens(name, text) {
    const m = this.modalities.get(name);
    const words = text.split(/\s+/).filter(Boolean);
    const [length] = m.shape;
    if (words.length > length) throw new RangeError(`${words.length} words, expected at most ${length}`);
    const ids = new BigInt64Array(length);
    words.forEach((word, i) => (ids[i] = BigInt(Math.max(m.vocabulary.indexOf(word), 1))));
    return ids;
  }

  array(name, values) {
    const m = this.modalities.get(name);
    const size = m.shape.reduce((a, b) => a * b, 1);
    if (values.length !== size || !values.every(Number.isFinite))
      throw new RangeError(`${values.length} numbers, expected ${size}, all of them finite`);
    return ARRAYS[m.dtype].from(values);
  }

  async run(part, feeds, outputs) {
    const before = this.last;
    let free;
    this.last = new Promise((resolve) => (free = resolve));
    await before;
    try {
      if (!this.sessions.has(part)) this.sessions.set(part, await this.open(part));
      return await this.sessions.get(part).run(feeds, outputs);
    } finally {
      free();
    }
  }

  async open(part) {
    const file = this.manifest.parts[part]?.file;
    if (!file) throw new BundleError(`${part}: not in this bundle`);
    const data = await this.read(file);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const hex = [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");
    if (hex !== this.manifest.files[file]) throw new BundleError(`${file}: damaged, its SHA-256 is ${hex.slice(0, 16)}...`);
    try {
      return await ort.InferenceSession.create(data, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    } catch (error) {
      throw new BundleError(`${file}: onnxruntime-web cannot load it (${error.message})`);
    }
  }
}
