// A bundle in the browser: the same parts as the Python Runtime's, opened when they are first needed. Every file is
// checked against its SHA-256 of the manifest before it is opened.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send

const FEATURES = ["features_mu", "features_logvar"]; // of a joint encoder, for rows in which everything is given
const SEEDED = ["seed", "count", "noise_scale"]; // of a graph that makes its noise itself
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

export class BundleError extends Error {}

/** What the bundle says of a modality's columns (of a series: channels). */
function scale(m) {
  const { mean, sd } = ["vector", "sequence"].includes(m.kind) ? (m.preprocessing ?? {}) : {};
  const size = m.shape.reduce((a, b) => a * b, 1);
  return mean && sd ? { mean, sd } : { mean: Array(size).fill(0), sd: Array(size).fill(1) };
}

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
    const bundle = new Bundle(read, manifest);
    const reason = bundle.reason();
    if (reason) throw new BundleError(`This page cannot show a ${manifest.model}: ${reason}. mmvae-fast run can.`);
    return bundle;
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
    return [...this.modalities.values()].filter((m) => {
      const part = this.manifest.parts[`decoder_${m.name}`];
      const isPoint = part?.inputs.length === 1 && part.inputs[0].shape[1] === this.latentDim;
      return isPoint && !m.lifted && !m.own_code;
    }).map((m) => m.name);
  }

  /** Why the page cannot show this bundle, in words; undefined where it can. */
  reason() {
    const fusion = this.manifest.parts.fusion;
    if (!fusion) return "it has no latent space that encoders lead to";
    const known = new Set(["mu", "logvar", "mask", ...FEATURES, ...SEEDED, ...fusion.noise.map((n) => n.name)]);
    const unknown = fusion.inputs.filter((t) => !known.has(t.name)).map((t) => t.name);
    if (unknown.length) return `its fusion takes ${unknown.join(", ")}, which the page does not know`;
    if (this.decodable.length) return undefined;
    if ([...this.modalities.values()].some((m) => m.tokens)) return "its text is made token by token";
    return "its decoders take more than the shared latent";
  }

  /** Mean of the posterior [D] of one row; inputs: name -> typed array of one sample. */
  async encode(inputs) {
    const fusion = this.manifest.parts.fusion;
    const [, count, width] = fusion.inputs.find((t) => t.name === "mu").shape;
    const [mu, logvar] = [0, 1].map(() => new Float32Array(count * width));
    const features = FEATURES.map(() => new Float32Array(count * this.latentDim));
    const mask = new Uint8Array(count);
    const complete = [...this.modalities.keys()].every((name) => name in inputs);
    for (const [i, [name, m]] of [...this.modalities].entries()) {
      if (!(name in inputs)) continue;
      const x = new ort.Tensor(m.dtype, inputs[name], [1, ...m.shape]);
      const found = await this.run(`encoder_${name}`, { x });
      mu.set(found.mu.data, i * width);
      logvar.set(found.logvar.data, i * width);
      mask[i] = 1;
      if (!m.features || !complete) continue;
      const joint = await this.run(`features_${name}`, { x });
      features[0].set(joint.mu.data, i * this.latentDim);
      features[1].set(joint.logvar.data, i * this.latentDim);
    }
    const given = {
      mu: new ort.Tensor("float32", mu, [1, count, width]),
      logvar: new ort.Tensor("float32", logvar, [1, count, width]),
      mask: new ort.Tensor("bool", mask, [1, count]),
      seed: new ort.Tensor("int64", [0n], []),
      count: new ort.Tensor("int64", [1n], []),
      noise_scale: new ort.Tensor("float32", [0], []), // no noise, of which the mean takes none
    };
    FEATURES.forEach((name, i) => (given[name] = new ort.Tensor("float32", features[i], [1, count, this.latentDim])));
    for (const noise of fusion.noise) {
      const input = fusion.inputs.find((t) => t.name === noise.name);
      if (!input) continue; // of a graph that makes it itself
      const shape = input.shape.map((n) => (typeof n === "string" ? 1 : n));
      const none = noise.kind.startsWith("uniform") ? 0.5 : 0;
      given[noise.name] = new ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(none), shape);
    }
    const feeds = Object.fromEntries(fusion.inputs.map((t) => [t.name, given[t.name]]));
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
    const [length] = m.shape;
    const all = text.split(/\s+/).filter(Boolean);
    const words = m.preprocessing?.too_long === "cut" ? all.slice(0, length) : all;
    if (words.length > length) throw new RangeError(`${words.length} words, expected at most ${length}`);
    const ids = new BigInt64Array(length);
    words.forEach((word, i) => (ids[i] = BigInt(Math.max(m.vocabulary.indexOf(word), 1))));
    return ids;
  }

  /** Numbers in their own units, with commas, as what the model takes; an empty place is a gap, where there may be some. */
  array(name, text) {
    const m = this.modalities.get(name);
    const size = m.shape.reduce((a, b) => a * b, 1);
    const places = text.split(",").map((place) => place.trim());
    const isGap = (i) => m.gaps && places[i] === "";
    const values = places.map((place) => (place === "" ? NaN : Number(place)));
    if (values.length !== size || !values.every((value, i) => Number.isFinite(value) || isGap(i)))
      throw new RangeError(`${values.length} numbers, expected ${size}, all of them finite`);
    const { mean, sd } = scale(m);
    return ARRAYS[m.dtype].from(values, (value, i) => (value - mean[i]) / sd[i]);
  }

  /** Numbers in their own units of what the model gives. */
  numbers(name, values) {
    const m = this.modalities.get(name);
    const { mean, sd } = scale(m);
    return [...values].map((value, i) => Number(value) * sd[i % sd.length] + mean[i % mean.length]);
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
