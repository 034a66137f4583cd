// The page: what is given, sliders for the latent space, and what the model makes of where they stand.
import { Bundle, fromFiles, fromUrl } from "./bundle.js";

const MAX_SLIDERS = 64;
const $ = (id) => document.getElementById(id);
const main = document.querySelector("main");
let bundle;
let given = {}; // modality -> () => typed array, or undefined where nothing is given
let drawing = Promise.resolve();

function say(text, error = false) {
  $("status").textContent = text;
  $("status").toggleAttribute("data-error", error);
}

/** Run work; what goes wrong is said, never thrown away. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
}

function element(kind, options = {}, ...children) {
  const made = Object.assign(document.createElement(kind), options);
  made.append(...children);
  return made;
}

async function open(read) {
  main.hidden = true;
  say("Loading ...");
  bundle = await Bundle.load(read);
  makeInputs();
  makeSliders();
  makeOutputs();
  await show();
  main.hidden = false;
  const hidden = [...bundle.modalities.keys()].filter((name) => !bundle.decodable.includes(name));
  const without = hidden.length ? `; this page cannot make ${hidden.join(", ")}` : "";
  say(`${bundle.manifest.model}, ${bundle.latentDim} latent dimensions${without}`);
}

const isPicture = (m) => m.kind === "image" && m.shape.length === 3 && [1, 3].includes(m.shape[0]);

function makeInputs() {
  given = {};
  $("given").replaceChildren();
  for (const [name, m] of bundle.modalities) {
    if (isPicture(m)) {
      const file = element("input", { type: "file", accept: "image/*", id: `given-${name}` });
      given[name] = async () => file.files.length ? picture(await createImageBitmap(file.files[0]), m) : undefined;
      $("given").append(element("label", {}, `${name}: `, file));
    } else if (m.dtype === "int64" ? m.vocabulary : m.shape.length === 1) {
      const field = element("input", { type: "text", id: `given-${name}`, placeholder: m.vocabulary && m.dtype === "int64" ? "words" : "numbers, with commas" });
      const read = m.dtype === "int64" ? (text) => bundle.tokens(name, text) : (text) => bundle.array(name, text);
      given[name] = async () => field.value.trim() ? read(field.value) : undefined;
      $("given").append(element("label", {}, `${name}: `, field));
    }
  }
}

/** Float32Array [C, H, W] in [0, 1] of a picture, brought to size and laid on the background as the bundle says. */
function picture(bitmap, m) {
  const [channels, height, width] = m.shape;
  const { fit = "stretch", background = 1 } = m.preprocessing ?? {};
  const context = new OffscreenCanvas(width, height).getContext("2d");
  const gray = Math.round(255 * background);
  context.fillStyle = `rgb(${gray}, ${gray}, ${gray})`;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high"; // averages over what it makes smaller
  let [w, h] = [width, height];
  if (fit !== "stretch") {
    const ratios = [width / bitmap.width, height / bitmap.height];
    const ratio = fit === "crop" ? Math.max(...ratios) : Math.min(...ratios);
    [w, h] = [bitmap.width * ratio, bitmap.height * ratio];
  }
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  const pixels = context.getImageData(0, 0, width, height).data;
  const found = new Float32Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = pixels.subarray(4 * i, 4 * i + 3);
    if (channels === 1) found[i] = (0.299 * r + 0.587 * g + 0.114 * b) / 255;
    else [r, g, b].forEach((value, c) => (found[c * height * width + i] = value / 255));
  }
  return found;
}

function makeSliders() {
  const count = Math.min(bundle.latentDim, MAX_SLIDERS);
  $("sliders").replaceChildren(
    ...Array.from({ length: count }, (_, d) => {
      const slider = element("input", { type: "range", min: -4, max: 4, step: 0.01, value: 0, id: `z-${d}` });
      slider.addEventListener("input", () => attempt(show));
      return element("label", {}, `z${d} `, slider);
    }),
  );
  bundle.rest = new Float32Array(bundle.latentDim); // what has no slider
}

function point() {
  const z = Float32Array.from(bundle.rest);
  for (const slider of $("sliders").querySelectorAll("input")) z[Number(slider.id.slice(2))] = Number(slider.value);
  return z;
}

function move(z) {
  bundle.rest = Float32Array.from(z);
  for (const slider of $("sliders").querySelectorAll("input")) slider.value = z[Number(slider.id.slice(2))];
  return show();
}

function makeOutputs() {
  $("made").replaceChildren(
    ...bundle.decodable.map((name) => {
      const m = bundle.modalities.get(name);
      const [, height, width] = m.shape;
      const view = isPicture(m) ? element("canvas", { width, height }) : element("pre");
      view.id = `made-${name}`;
      return element("label", {}, `${name}:`, element("br"), view);
    }),
  );
}

/** Decode where the sliders stand; of moves that come faster than that, the last one counts. */
function show() {
  const z = point();
  show.wanted = z;
  drawing = drawing.then(async () => {
    if (show.wanted !== z) return;
    for (const name of bundle.decodable) render(name, await bundle.decode(z, name));
  });
  const done = drawing;
  drawing = drawing.catch(() => {});
  return done;
}

function render(name, values) {
  const m = bundle.modalities.get(name);
  const view = $(`made-${name}`);
  if (!isPicture(m)) {
    view.textContent = bundle.text(name, values) ?? bundle.numbers(name, values).map((v) => v.toPrecision(4)).join(", ");
    return;
  }
  const [channels, height, width] = m.shape;
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++)
    for (let c = 0; c < 4; c++)
      image.data[4 * i + c] = c === 3 ? 255 : 255 * values[(channels === 1 ? 0 : c) * height * width + i];
  view.getContext("2d").putImageData(image, 0, 0);
}

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

async function translate() {
  const inputs = {};
  for (const [name, read] of Object.entries(given)) {
    let x;
    try {
      x = await read();
    } catch (error) {
      throw new Error(`${name}: ${error.message}`);
    }
    if (x !== undefined) inputs[name] = x;
  }
  if (!Object.keys(inputs).length) throw new Error("Nothing is given to translate.");
  await move(await bundle.encode(inputs));
  say(`Made from ${Object.keys(inputs).join(", ")}.`);
}

$("folder").addEventListener("change", (event) => attempt(() => open(fromFiles(event.target.files))));
$("translate").addEventListener("click", () => attempt(translate));
$("origin").addEventListener("click", () => attempt(() => move(new Float32Array(bundle.latentDim))));
$("draw").addEventListener("click", () => attempt(() => move(Float32Array.from({ length: bundle.latentDim }, normal))));

const address = new URLSearchParams(location.search).get("bundle"); // ?bundle=folder/beside/the/page
if (address) attempt(() => open(fromUrl(address)));
