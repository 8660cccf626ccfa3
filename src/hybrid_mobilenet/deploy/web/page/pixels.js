// Crop and resize a picture to the network's input: the same pixels as the project's Python code makes with Pillow.

/** Pillow's limit (PIL.Image.MAX_IMAGE_PIXELS). The Python code accepts larger JPEGs: it decodes them at half size. */
export const MAX_PIXELS = 89478485;

/** Number of rows or columns read at once: some phones do not allow a canvas of a whole photograph. */
const STRIP = 256;

/** Fractional bits of a weight in Pillow's fixed-point arithmetic for 8-bit channels. */
const WEIGHT_BITS = 22;

/**
 * Crop the centre of the picture to the aspect ratio of the input and resize it by Pillow's antialiased bicubic
 * interpolation. A picture of the right size keeps its pixels. Transparent pixels are blended with white.
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
  // The order of the axes matters, because results are rounded in between. This is Pillow's rule (since 13.0).
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

/** Left, top, right and bottom of the largest centred crop with this aspect ratio, as in Pillow's ImageOps.fit. */
function centreCrop(imageWidth, imageHeight, width, height) {
  const shape = width / height;
  const wider = imageWidth / imageHeight >= shape;
  const cropWidth = wider && imageWidth / imageHeight !== shape ? shape * imageHeight : imageWidth;
  const cropHeight = wider ? imageHeight : imageWidth / shape;
  const left = (imageWidth - cropWidth) * 0.5;
  const top = (imageHeight - cropHeight) * 0.5;
  return [left, top, left + cropWidth, top + cropHeight].map(Math.fround); // Pillow stores the box in float32
}

/**
 * The weights for resizing the pixels between `from` and `to` along an axis to `count` pixels. Of the axis, `size`
 * pixels from `first` on are needed. Each output is a weighted sum of them from `start` on, with fixed-point weights.
 */
function axis(length, from, to, count) {
  const kept = from === 0 && to === length && count === length;
  const scale = Math.fround(to - from) / count;
  const spread = Math.max(scale, 1); // antialiasing: downscaling averages over more pixels
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
 * Weighted sums along one axis, for `length` neighbouring values at once. Along the axis, the values are `sourceStep`
 * apart in `source` and `targetStep` apart in `target`.
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

/** Read a part of the picture, on white: height x width x channels. */
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
      // Pillow's conversion to greyscale (ITU-R 601)
      result[to++] = (rgba[from] * 19595 + rgba[from + 1] * 38470 + rgba[from + 2] * 7471 + 32768) >> 16;
    } else {
      result[to++] = rgba[from];
      result[to++] = rgba[from + 1];
      result[to++] = rgba[from + 2];
    }
  }
  return result;
}
