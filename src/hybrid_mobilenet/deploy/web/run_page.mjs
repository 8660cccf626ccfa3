// Run the model of an exported page in the page's own onnxruntime-web, without a browser.
// Usage: node run_page.mjs FOLDER THREADS
//
// Batches are read from stdin: the number of images N as uint32, then the images, uint8 (N, H, W, C).
// For each batch, stdout gets the logits and then the probabilities, float32 (N, classes).

import { readFileSync, readSync, writeSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, threads] = [resolve(process.argv[2]), Number(process.argv[3])];
const runtime = join(folder, "onnxruntime-web");
const ort = await import(pathToFileURL(join(runtime, "ort.wasm.min.mjs")));
ort.env.wasm.numThreads = threads;
ort.env.wasm.wasmBinary = readFileSync(join(runtime, "ort-wasm-simd-threaded.wasm"));

const model = JSON.parse(readFileSync(join(folder, "model.json"), "utf8"));
const shape = [...model.image_size, model.in_channels];
const session = await ort.InferenceSession.create(readFileSync(join(folder, "model.onnx")));
for (let head = read(4); head; head = read(4)) {
  const count = new DataView(head.buffer).getUint32(0, true);
  const images = read(shape.reduce((product, side) => product * side, count));
  const { logits, probabilities } = await session.run({ images: new ort.Tensor("uint8", images, [count, ...shape]) });
  for (const { data } of [logits, probabilities]) write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}
process.exit(); // onnxruntime-web's idle threads would keep Node running

/** Read `length` bytes from stdin; undefined at its end. */
function read(length) {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const count = readSync(0, bytes, done, length - done);
    if (count === 0) return undefined;
    done += count;
  }
  return bytes;
}

function write(bytes) {
  for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
}
