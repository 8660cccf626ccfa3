// The user interface. The model runs in worker.js.

const element = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** Number of classes shown before "Show all" is pressed. */
const SHOWN = 10;

/** Pictures narrower than this are shown without smoothing, so that their pixels are visible. */
const TINY = 128;

/** Minimum time between announcements to a screen reader while the camera runs. */
const ANNOUNCEMENT_MILLISECONDS = 2000;

let model; // the content of model.json, once the model is loaded
let latest = 0; // id of the latest picture; answers for older ones are dropped
let camera; // the stream while the camera runs
let opening = false; // whether the browser is still opening the camera
let answer; // the answer shown

// ---- The model

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
worker.onerror = () => showFailure("onnxruntime-web cannot be loaded: reload the page, or export it again.");
worker.onmessage = ({ data }) => {
  if (data.failure) showFailure(data.failure);
  else if (data.model) showModel(data.model);
  else waiting.get(data.id)(data);
};

/** The model's answer to a Blob or an ImageBitmap. The bitmap is transferred to the worker. */
async function ask(picture) {
  latest += 1;
  const id = latest;
  const result = new Promise((resolve) => waiting.set(id, resolve));
  worker.postMessage({ id, picture }, picture instanceof ImageBitmap ? [picture] : []);
  await result;
  waiting.delete(id);
  return result;
}

async function classify(file) {
  stopCamera();
  showError("");
  element("work").ariaBusy = "true";
  const result = await ask(file);
  if (result.id !== latest) return;
  element("work").ariaBusy = "false";
  element("result").hidden = Boolean(result.error);
  showPicture(result.error ? undefined : file);
  if (result.error) {
    showError(result.error);
  } else {
    showAnswer(result);
    announce();
  }
}

// ---- Display

function showModel(loaded) {
  model = loaded;
  const [height, width] = model.image_size;
  const size = `${width}\u00a0×\u00a0${height}\u00a0pixels`;
  element("model").textContent = `${model.name}, ${model.class_names.length} classes, ${size}`;
  element("input-size").textContent = size;
  element("runtime").textContent =
    `onnxruntime-web ${model.runtime}: WebAssembly, SIMD, ${model.threads} thread${model.threads > 1 ? "s" : ""}`;
  element("all").textContent = `Show all ${model.class_names.length} classes`;
  element("all").hidden = model.class_names.length <= SHOWN;
  element("file").disabled = element("camera").disabled = false;
  element("picture").style.setProperty("--shape", width / height);
}

function showFailure(message) {
  element("model").textContent = "No model";
  showError(message);
}

function showError(message) {
  element("error").textContent = message;
}

/** Show a picture, or the hint if there is none. */
function showPicture(file) {
  const preview = element("preview");
  URL.revokeObjectURL(preview.src);
  if (file) preview.src = URL.createObjectURL(file);
  show(file ? "preview" : "hint");
}
element("preview").onload = ({ target }) => target.classList.toggle("tiny", target.naturalWidth < TINY);

/** Show one of hint, preview and video. */
function show(id) {
  for (const each of ["hint", "preview", "video"]) element(each).hidden = each !== id;
}

function showAnswer(result) {
  const classes = model.class_names.map((name, index) => ({ name, probability: result.probabilities[index] }));
  classes.sort((a, b) => b.probability - a.probability);
  answer = { ...result, classes };
  element("answer").textContent = classes[0].name;
  element("time").textContent = `${result.milliseconds.toFixed(1)} ms`;
  showClasses();
  showInput(result.pixels);
  element("result").hidden = false;
}

function showClasses() {
  const all = element("all").ariaExpanded === "true";
  const rows = answer.classes.slice(0, all ? undefined : SHOWN).map(({ name, probability }) => {
    const row = document.createElement("li");
    row.append(labelled("name", name), " ", labelled("value", percent.format(probability)));
    row.style.setProperty("--probability", probability);
    return row;
  });
  element("classes").replaceChildren(...rows);
}

function labelled(kind, text) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  return span;
}

/** Draw the network's input, pixel by pixel. */
function showInput(pixels) {
  const [height, width] = model.image_size;
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const at = pixel * model.in_channels;
    const grey = model.in_channels === 1;
    image.data.set([pixels[at], pixels[grey ? at : at + 1], pixels[grey ? at : at + 2], 255], pixel * 4);
  }
  Object.assign(element("input"), { width, height }).getContext("2d").putImageData(image, 0, 0);
}

/** Announce the answer to a screen reader. */
function announce() {
  const { name, probability } = answer.classes[0];
  element("announcement").textContent =
    `${name}, ${percent.format(probability)}, in ${answer.milliseconds.toFixed(1)} milliseconds`;
}

// ---- Sources of pictures: file, drop, paste, camera

element("file").onchange = ({ target }) => {
  if (target.files.length) classify(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
};

document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  receive(event.dataTransfer.files, "That was not a file: save the picture, then drop the file.");
};
document.onpaste = ({ clipboardData }) => receive(clipboardData.files, "There is no picture in the clipboard.");

function receive(files, complaint) {
  if (!model) return;
  if (files.length) classify(files[0]);
  else showError(complaint);
}

element("camera").onclick = async () => {
  if (camera) {
    classify(await currentFrame()); // the last frame becomes the picture
    return;
  }
  if (opening) return;
  showError("");
  opening = true;
  const stream = await openCamera().catch((error) => showError(error.message));
  opening = false;
  if (!stream) return;
  camera = stream;
  await watch(stream).catch((error) => {
    if (camera !== stream) return; // another picture was chosen meanwhile
    stopCamera();
    showPicture();
    showError(error.message);
  });
};

element("all").onclick = ({ target }) => {
  const all = target.ariaExpanded !== "true";
  target.ariaExpanded = String(all);
  target.textContent = all ? "Show fewer classes" : `Show all ${model.class_names.length} classes`;
  showClasses();
};

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("Browsers allow the camera only on localhost and over HTTPS.");
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const reasons = {
      NotAllowedError: "Access to the camera was denied: allow it for this page in the browser's settings.",
      NotFoundError: "No camera was found.",
      NotReadableError: "The camera is in use by another program.",
    };
    throw new Error(reasons[error.name] ?? `The camera does not start: ${error.message}`);
  }
}

/** Classify one frame after another until the camera is stopped. */
async function watch(stream) {
  const video = element("video");
  video.srcObject = stream;
  await video.play();
  show("video");
  element("camera").textContent = "Take this picture";
  let announced = { at: -Infinity };
  while (camera === stream) {
    const result = await ask(await createImageBitmap(video, { colorSpaceConversion: "none" }));
    if (camera !== stream || result.id !== latest) return;
    if (result.error) throw new Error(result.error);
    showAnswer(result);
    const { name } = answer.classes[0];
    if (name !== announced.name && performance.now() - announced.at > ANNOUNCEMENT_MILLISECONDS) {
      announced = { name, at: performance.now() };
      announce();
    }
    await new Promise(requestAnimationFrame);
  }
}

function currentFrame() {
  const video = element("video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = undefined;
  element("video").srcObject = null;
  element("camera").textContent = "Use the camera";
}

// ---- Offline use

navigator.serviceWorker?.register("service-worker.js", { updateViaCache: "none" });
navigator.serviceWorker?.ready.then(() => {
  element("offline").textContent = "This page now works without a network.";
});
