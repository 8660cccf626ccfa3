// A picture, made what the network is given: the same pixels as the project's Python code makes with Pillow.

/** Pillow's bound (PIL.Image.MAX_IMAGE_PIXELS); the Python code takes larger JPEGs, which it can decode at half size. */
export const MAX_PIXELS = 89478485;

/** Rows or columns read at once: a canvas for a whole photograph is more than some phones allow. */
const STRIP = 256;

/** Pillow's fixed-point arithmetic for 8-bit channels: fractional bits of a weight. */
const WEIGHT_BITS = 22;

/**
 * The centre of the picture, cropped to the wanted shape and resized by Pillow's antialiased bicubic interpolation.
 * A picture that already has the size keeps its pixels. Transparency is laid on white.
 *
 * @param {ImageBitmap} bitmap decoded without colour conversion
 * @param {number} height of the network's input, in pixels
 * @param {number} width
 * @param {number} channels 3 for RGB, 1 for greyscale
 * @returns {Uint8Array} height x width x channels
 */
export function networkInput(bitmap, height, width, channels) {
  const [left, top, right, bottom] = centreCrop(bitmap.width, bitmap.height, width, height);
  const columns = axis(bitmap.width, left, right, width);
  const rows = axis(bitmap.height, top, bottom, height);
  const stride = width * channels;
  const result = new Uint8Array(height * stride);
  // Which axis comes first shows, as results are rounded in between; this is Pillow's rule (since 13.0).
  if (bitmap.height > height && bitmap.height - height > 2 * (bitmap.width - width)) {
    const wide = columns.size * channels;
    const flat = new Uint8Array(height * wide);
    for (let x = 0; x < columns.size; x += STRIP) {
      const count = Math.min(STRIP, columns.size - x);
      const strip = read(bitmap, columns.first + x, rows.first, count, rows.size, channels);
      combine(strip, 0, count * channels, rows.sums, flat, x * channels, wide, count * channels);
    }
    for (let y = 0; y < height; y++) combine(flat, y * wide, channels, columns.sums, result, y * stride, channels, channels);
  } else {
    const narrow = new Uint8Array(rows.size * stride);
    for (let y = 0; y < rows.size; y += STRIP) {
      const count = Math.min(STRIP, rows.size - y);
      const strip = read(bitmap, columns.first, rows.first + y, columns.size, count, channels);
      for (let row = 0; row < count; row++) {
        const from = row * columns.size * channels;
        combine(strip, from, channels, columns.sums, narrow, (y + row) * stride, channels, channels);
      }
    }
    combine(narrow, 0, stride, rows.sums, result, 0, stride, stride);
  }
  return result;
}

/** Left, top, right and bottom of the largest centred part of the wanted shape; Pillow's ImageOps.fit. */
function centreCrop(imageWidth, imageHeight, width, height) {
  const shape = width / height;
  const wider = imageWidth / imageHeight >= shape;
  const cropWidth = wider && imageWidth / imageHeight !== shape ? shape * imageHeight : imageWidth;
  const cropHeight = wider ? imageHeight : imageWidth / shape;
  const left = (imageWidth - cropWidth) * 0.5;
  const top = (imageHeight - cropHeight) * 0.5;
  return [left, top, left + cropWidth, top + cropHeight].map(Math.fround); // Pillow keeps the box in 32 bits
}

/**
 * How `count` pixels along an axis are made of the pixels between `from` and `to`: of `size` pixels that begin at
 * `first`, each is a weighted sum of those from `start`. The weights are fixed-point numbers, as Pillow's.
 */
function axis(length, from, to, count) {
  const kept = from === 0 && to === length && count === length;
  const scale = Math.fround(to - from) / count;
  const spread = Math.max(scale, 1); // a smaller picture averages over more pixels: antialiasing
  const support = 2 * spread;
  const sums = Array.from({ length: count }, (_, index) => {
    if (kept) return { start: index, weights: Int32Array.of(1 << WEIGHT_BITS) };
    const centre = from + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(length, Math.trunc(centre + support + 0.5));
    const values = Array.from({ length: end - start }, (_, i) => bicubic((start + i - centre + 0.5) / spread));
    const total = values.reduce((sum, value) => sum + value, 0);
    return { start, weights: Int32Array.from(values, (value) => rounded((value / total) * (1 << WEIGHT_BITS))) };
  });
  const first = sums[0].start;
  const last = sums[count - 1];
  const size = last.start + last.weights.length - first;
  return { first, size, sums: sums.map(({ start, weights }) => ({ start: start - first, weights })) };
}

function rounded(x) {
  return Math.trunc(x < 0 ? x - 0.5 : x + 0.5);
}

function bicubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return (((d - 5) * d + 8) * d - 4) * a;
  return 0;
}

/**
 * Weighted sums along one axis, of `length` neighbouring numbers at once: `source` has them every `sourceStep`,
 * `target` gets them every `targetStep`.
 */
function combine(source, sourceOffset, sourceStep, sums, target, targetOffset, targetStep, length) {
  for (const { start, weights } of sums) {
    for (let i = 0; i < length; i++) {
      let from = sourceOffset + start * sourceStep + i;
      let sum = 1 << (WEIGHT_BITS - 1);
      for (let k = 0; k < weights.length; k++, from += sourceStep) sum += source[from] * weights[k];
      target[targetOffset + i] = Math.max(0, Math.min(255, sum >> WEIGHT_BITS));
    }
    targetOffset += targetStep;
  }
}

/** A part of the picture on white: height x width x channels. */
function read(bitmap, left, top, width, height, channels) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const result = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (channels === 1) {
      // Pillow's luminance
      result[to++] = (rgba[from] * 19595 + rgba[from + 1] * 38470 + rgba[from + 2] * 7471 + 32768) >> 16;
    } else {
      result[to++] = rgba[from];
      result[to++] = rgba[from + 1];
      result[to++] = rgba[from + 2];
    }
  }
  return result;
}
