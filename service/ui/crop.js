// What the model sees of an image, by the rule of model/preprocess.py and model/views.py: upright, on white, the shorter
// side scaled by one of Pillow's filters, the centre square. For our own networks a much larger JPEG is reduced first, as
// its decoder does it there.

const FILTERS = {
  // The weight at a distance, and how far that reaches, in pixels of the smaller of the two images.
  bicubic: { weight: bicubic, support: 2 },
  bilinear: { weight: (distance) => Math.max(0, 1 - Math.abs(distance)), support: 1 },
};
const STRIP_PIXELS = 2 ** 20; // read at once; between two strips the page can do other things
const JPEG = [0xff, 0xd8, 0xff];

/** A canvas of `size` x `size` pixels, by the model's `preprocess`; rejects what this browser cannot decode. */
export async function cropOf(file, { size, resize }) {
  const imported = typeof resize === "object";
  const filter = FILTERS[imported ? resize.filter : "bicubic"];
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  try {
    const reduction = !imported && (await isJpeg(file)) ? reductionOf(picture, size) : 1;
    const source = await reduced(picture, reduction);
    const square = Math.min(source.width, source.height);
    const [across, down] = [source.width, source.height].map((length) => {
      if (!imported) return taps(length, (length - square) / 2, square, size, filter);
      const scaled = Math.trunc((resize.shorter_side * length) / square);
      const scale = length / scaled;
      return taps(length, halfEven((scaled - size) / 2) * scale, size * scale, size, filter);
    });
    const columns = resampled(source, across);
    const { pixels } = resampled(columns, down);
    return drawn(new ImageData(pixels, size, size));
  } finally {
    picture.close();
  }
}

/** As Python rounds. */
function halfEven(number) {
  const rounded = Math.round(number);
  return number % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

async function isJpeg(file) {
  const bytes = new Uint8Array(await file.slice(0, JPEG.length).arrayBuffer());
  return JPEG.every((byte, place) => bytes[place] === byte);
}

/** By how much the decoder of a JPEG reduces it: it never goes below twice the model's size. */
function reductionOf({ width, height }, size) {
  return [8, 4, 2].find((each) => Math.min(width, height) >= 2 * size * each) ?? 1;
}

/** The pixels on white, those of each square of `by` x `by` averaged: {pixels: RGBA, width, height}. */
async function reduced(picture, by) {
  const { width, height } = picture;
  const [across, down] = [Math.ceil(width / by), Math.ceil(height / by)];
  const pixels = new Uint8ClampedArray(4 * across * down);
  const rows = by * Math.max(1, Math.floor(STRIP_PIXELS / (width * by)));
  const canvas = new OffscreenCanvas(width, Math.min(rows, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += rows) {
    const strip = Math.min(rows, height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, strip);
    context.drawImage(picture, 0, top, width, strip, 0, 0, width, strip);
    const { data } = context.getImageData(0, 0, width, strip);
    const place = (4 * across * top) / by;
    pixels.set(by === 1 ? data : averages(data, width, strip, by), place);
    await new Promise((resolve) => setTimeout(resolve));
  }
  return { pixels, width: across, height: down };
}

function averages(data, width, height, by) {
  const across = Math.ceil(width / by);
  const means = new Uint8ClampedArray(4 * across * Math.ceil(height / by));
  for (let place = 0; place < means.length; place += 4) {
    const left = by * ((place / 4) % across);
    const top = by * Math.floor(place / 4 / across);
    const [right, bottom] = [Math.min(left + by, width), Math.min(top + by, height)];
    for (let channel = 0; channel < 4; channel += 1) {
      let sum = 0;
      for (let y = top; y < bottom; y += 1) {
        for (let x = left; x < right; x += 1) sum += data[4 * (y * width + x) + channel];
      }
      means[place + channel] = sum / ((right - left) * (bottom - top));
    }
  }
  return means;
}

/** For each of `size` pixels that share `span` of a line's `length` pixels: which of these it is made of. */
function taps(length, from, span, size, { weight, support }) {
  const scale = span / size;
  const wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, place) => {
    const centre = from + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * wide + 0.5));
    const end = Math.min(length, Math.trunc(centre + support * wide + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) => weight((first + k - centre + 0.5) / wide));
    const sum = weights.reduce((total, each) => total + each, 0);
    return { first, weights: weights.map((each) => each / sum) };
  });
}

function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return 1.5 * x ** 3 - 2.5 * x ** 2 + 1;
  return x < 2 ? -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 : 0;
}

/** Every row resampled, and the whole mirrored along its diagonal: done twice, it is upright again. */
function resampled({ pixels, width, height }, places) {
  const turned = new Uint8ClampedArray(4 * places.length * height);
  places.forEach(({ first, weights }, column) => {
    for (let row = 0; row < height; row += 1) {
      const from = 4 * (row * width + first);
      const to = 4 * (column * height + row);
      for (let channel = 0; channel < 4; channel += 1) {
        let sum = 0;
        for (let k = 0; k < weights.length; k += 1) sum += weights[k] * pixels[from + 4 * k + channel];
        turned[to + channel] = sum;
      }
    }
  });
  return { pixels: turned, width: height, height: places.length };
}

function drawn(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
