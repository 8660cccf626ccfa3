// Runs the model in a worker thread, so that the page stays responsive.
//
// Messages in: {id, picture}, with a Blob or an ImageBitmap. Messages out: {model} once the model is ready, or
// {failure} if it cannot be loaded; for each picture {id, probabilities, milliseconds, pixels}, or {id, error}.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";
import { MAX_PIXELS, networkInput } from "./pixels.js";

/** Maximum size of a file in bytes. A photograph has 2 to 50 MB. */
const MAX_BYTES = 200e6;

/** Mult-Adds per thread below which more threads are slower: they would wait longer than they compute. */
const THREAD_MULT_ADDS = 40e6;

const ready = load();
ready.then(
  ({ model }) => postMessage({ model: { ...model, threads: ort.env.wasm.numThreads, runtime: ort.env.versions.web } }),
  (error) => postMessage({ failure: error.message }),
);

async function load() {
  const [model, network] = await Promise.all([
    fetched("model.json").then((response) => response.json()),
    fetched("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  const useful = Math.floor(model.mult_adds / THREAD_MULT_ADDS);
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency, useful)) : 1;
  const session = await ort.InferenceSession.create(network).catch((error) => {
    throw new Error(`The model cannot be run: ${error.message}`);
  });
  const [height, width] = model.image_size;
  const blank = new Uint8Array(height * width * model.in_channels);
  for (let pass = 0; pass < 3; pass++) await run(session, model, blank); // warm-up
  return { model, session };
}

async function fetched(file) {
  const response = await fetch(file).catch(() => ({ ok: false, status: "no connection" }));
  if (!response.ok) throw new Error(`${file} cannot be loaded (${response.status}): reload the page, or export it again.`);
  return response;
}

async function run(session, model, pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, ...model.image_size, model.in_channels]);
  const start = performance.now();
  const { probabilities } = await session.run({ images }, ["probabilities"]);
  return { probabilities: probabilities.data, milliseconds: performance.now() - start };
}

async function decoded(picture) {
  if (picture instanceof ImageBitmap) return picture;
  if (picture.size > MAX_BYTES) {
    throw new Error(`This file has ${Math.round(picture.size / 1e6)} MB: choose one below ${MAX_BYTES / 1e6} MB.`);
  }
  return createImageBitmap(picture, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).catch(() => {
    throw new Error("This browser cannot read that as a picture: choose an undamaged JPEG, PNG, WebP or GIF file.");
  });
}

/** Pictures are classified one at a time, in the order of their messages. */
let queue = ready;
onmessage = ({ data: { id, picture } }) => {
  queue = queue.then(() => classify(picture)).then(
    (result) => postMessage({ id, ...result }),
    (error) => postMessage({ id, error: error.message }),
  );
};

async function classify(picture) {
  const { model, session } = await ready;
  const bitmap = await decoded(picture);
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) {
      const size = `${bitmap.width} x ${bitmap.height} pixels`;
      throw new Error(`This picture has ${size}: choose one below ${Math.floor(MAX_PIXELS / 1e6)} million.`);
    }
    const pixels = networkInput(bitmap, ...model.image_size, model.in_channels);
    return { ...(await run(session, model, pixels)), pixels };
  } finally {
    bitmap.close();
  }
}
