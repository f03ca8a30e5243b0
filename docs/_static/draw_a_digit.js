// "Draw a digit": the network of the first tutorial with its estimators, run in the browser.
// draw_a_digit_network.js comes before it and holds the weights, the statistics and the digits.
(() => {
  "use strict";
  const CLASSES = 10;
  const SIDE = 28; // of the network's images
  const BOX = 20; // MNIST's digits fill so many pixels of them
  const PEN = 2.4; // width of a stroke, in such pixels: the median of MNIST's strokes

  // --- The network: a LeNet, of which only batch norm differs between the estimators ---

  const network = globalThis.mcbnNetwork;
  const bytes = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const floats = (base64) => new Float32Array(bytes(base64).buffer);
  const tensor = (name) => floats(network.state[`model.${name}`]);
  const [conv1, conv2, dense1, dense2, dense3] = [0, 4, 10, 12, 14].map((layer) => ({
    weight: tensor(`${layer}.weight`),
    bias: tensor(`${layer}.bias`),
  }));
  // The two batch norms for each size of the mini-batches.
  const norms = Object.fromEntries(
    Object.keys(network.statistics).map((size) => [size, [1, 5].map((layer) => scalesAndShifts(layer, size))]),
  );
  const numEstimators = norms[network.size][0].length - 1;
  const plain = numEstimators; // the plain network, with its running statistics, is last

  function scalesAndShifts(layer, size) {
    const [weight, bias] = [tensor(`${layer}.weight`), tensor(`${layer}.bias`)];
    const [means, vars] = ["mean", "var"].map((name) =>
      Float32Array.of(
        ...floats(network.statistics[size][`model.${layer}.mc_${name}`]),
        ...tensor(`${layer}.running_${name}`),
      ),
    );
    return Array.from({ length: means.length / weight.length }, (_, estimator) => {
      const start = estimator * weight.length;
      const scale = weight.map((w, c) => w / Math.sqrt(vars[start + c] + network.eps));
      return { scale, shift: bias.map((b, c) => b - means[start + c] * scale[c]) };
    });
  }

  // Channels of side × side values in, those of the 5 × 5 convolution without padding out.
  function convolve(input, side, { weight, bias }) {
    const out = side - 4;
    const channels = input.length / side ** 2;
    const result = new Float32Array(bias.length * out ** 2);
    let next = 0;
    for (let to = 0; to < bias.length; to++) {
      const channel = result.subarray(to * out ** 2, (to + 1) * out ** 2).fill(bias[to]);
      for (let from = 0; from < channels; from++) {
        for (let tap = 0; tap < 25; tap++) {
          const w = weight[next++];
          const corner = from * side ** 2 + Math.floor(tap / 5) * side + (tap % 5);
          for (let y = 0, i = 0; y < out; y++) {
            for (let x = 0, j = corner + y * side; x < out; x++) channel[i++] += w * input[j++];
          }
        }
      }
    }
    return result;
  }

  // Batch norm, ReLU, and the maximum of every 2 × 2 values.
  function normalizeAndPool(input, side, { scale, shift }) {
    const half = side / 2;
    const result = new Float32Array(scale.length * half ** 2); // zeros: the ReLU
    for (let channel = 0, i = 0; channel < scale.length; channel++) {
      for (let y = 0; y < side; y++) {
        for (let x = 0; x < side; x++, i++) {
          const place = (channel * half + (y >> 1)) * half + (x >> 1);
          const value = scale[channel] * input[i] + shift[channel];
          if (value > result[place]) result[place] = value;
        }
      }
    }
    return result;
  }

  const relu = (values) => values.map((value) => Math.max(value, 0));

  function dense(input, { weight, bias }) {
    return bias.map((sum, row) => {
      const start = row * input.length;
      for (let i = 0; i < input.length; i++) sum += weight[start + i] * input[i];
      return sum;
    });
  }

  // The logits of some estimators for an image of 784 pixels from 0 to 255.
  function logits(pixels, estimators, size = network.size) {
    const [norm1, norm2] = norms[size];
    const image = Float32Array.from(pixels, (p) => (p / 255 - network.mean) / network.std);
    const first = convolve(image, SIDE, conv1); // shared by all
    return estimators.map((estimator) => {
      const pooled = normalizeAndPool(first, 24, norm1[estimator]);
      const features = normalizeAndPool(convolve(pooled, 12, conv2), 8, norm2[estimator]);
      return dense(relu(dense(relu(dense(features, dense1)), dense2)), dense3);
    });
  }

  // --- From logits to one prediction and its uncertainty, in nats ---

  function softmax(values) {
    const most = Math.max(...values);
    const powers = Array.from(values, (value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  }

  const entropy = (probs) => probs.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
  const average = (values) => values.reduce((a, b) => a + b) / values.length;
  const argmax = (probs) => probs.indexOf(Math.max(...probs));

  function summarise(probs) {
    const mean = probs[0].map((_, digit) => average(probs.map((p) => p[digit])));
    const total = entropy(mean);
    return { mean, entropy: total, information: Math.max(0, total - average(probs.map(entropy))) };
  }

  // --- A drawing becomes an image in the way that MNIST's were made ---

  // The ink (side × side, from 0 to 255) is scaled so that its bounding box fits into 20 × 20
  // pixels, each of which gets the mean of what it covers. Then it is moved by whole pixels, so
  // that its centre of mass falls on pixel (14, 14) of 28 × 28. Null if there is no ink.
  function centre(ink, side) {
    let [top, bottom, left, right] = [side, -1, side, -1];
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        if (ink[y * side + x] === 0) continue;
        [top, bottom] = [Math.min(top, y), y];
        [left, right] = [Math.min(left, x), Math.max(right, x)];
      }
    }
    if (bottom < 0) return null;
    const scale = BOX / Math.max(bottom - top + 1, right - left + 1);
    const box = new Float64Array(BOX ** 2);
    const columns = Array.from({ length: right - left + 1 }, (_, x) => cover(x * scale, scale));
    let [mass, massY, massX] = [0, 0, 0];
    for (let y = top; y <= bottom; y++) {
      for (const [row, height] of cover((y - top) * scale, scale)) {
        for (let x = left; x <= right; x++) {
          const value = ink[y * side + x];
          if (value === 0) continue;
          for (const [column, width] of columns[x - left]) {
            const part = value * height * width;
            box[row * BOX + column] += part;
            mass += part;
            massY += part * row;
            massX += part * column;
          }
        }
      }
    }
    const shift = (moment) => Math.ceil(SIDE / 2 - 0.5 - moment / mass);
    const [down, over] = [shift(massY), shift(massX)];
    const image = new Uint8Array(SIDE ** 2);
    box.forEach((value, i) => {
      const y = Math.floor(i / BOX) + down;
      const x = (i % BOX) + over;
      if (0 <= y && y < SIDE && 0 <= x && x < SIDE) image[y * SIDE + x] = Math.round(value);
    });
    return image;
  }

  // The cells between which an interval is divided, each with its share; rounding adds none.
  function cover(start, length) {
    const shares = [];
    for (let cell = Math.floor(start + 1e-9); cell < start + length - 1e-9; cell++) {
      shares.push([cell, Math.min(start + length, cell + 1) - Math.max(start, cell)]);
    }
    return shares;
  }

  // --- The page ---

  const find = (name) => document.getElementById(`digit-${name}`);
  const pad = find("pad");
  const ink = pad.getContext("2d", { willReadFrequently: true });
  const seen = find("seen").getContext("2d");
  const digits = bytes(network.digits);
  const percent = (p) => `${Math.round(100 * p)} %`;
  const sizes = [...document.getElementsByName("digit-size")];
  const size = () => sizes.find(({ checked }) => checked).value;
  const place = { mean: makeLine("mean", "mean"), plain: makeLine("plain", "plain") };
  element("caption", find("chart"), "estimators, each with a mini-batch of its own");
  const lines = Array.from({ length: numEstimators }, (_, i) => makeLine("estimator", i + 1));
  let pixels = null; // what the network gets
  let index = null; // of the test digit that is shown; null for a drawing
  let drawn = false; // on the pad, rather than a test digit or an image from a link
  let waiting = false;

  function element(kind, parent, text = "") {
    const made = document.createElement("span");
    made.className = `digit-${kind}`;
    made.textContent = text;
    parent.append(made);
    return made;
  }

  // A line of the chart: its name, a bar for each digit, and the digit read.
  function makeLine(kind, name) {
    const line = element(`line digit-${kind}`, find("chart"));
    element("name", line, name);
    const cells = Array.from({ length: CLASSES }, () => element("cell", line));
    const made = { line, cells, reading: element("reading", line) };
    made.bars = cells.map((cell) => element("bar", cell));
    if (kind === "mean") {
      made.values = cells.map((cell) => element("value", cell));
      const axis = element("line digit-axis", find("chart"));
      element("name", axis);
      made.digits = cells.map((_, digit) => element("cell", axis, digit));
      element("reading", axis, "reads");
    }
    return made;
  }

  function show(line, probs, expected) {
    const read = probs && argmax(probs);
    line.bars.forEach((bar, digit) => {
      bar.style.transform = `scaleY(${probs ? probs[digit] : 0})`;
      bar.classList.toggle("digit-read", digit === read);
    });
    line.line.classList.toggle("digit-differs", Boolean(probs) && read !== expected);
    line.reading.textContent = probs ? read : "";
  }

  function update() {
    const count = find("count").valueAsNumber;
    const chosen = [...Array(count).keys()];
    const probs = pixels ? logits(pixels, [...chosen, plain], size()).map(softmax) : [];
    const plainProbs = probs.pop();
    const all = pixels ? summarise(probs) : { mean: null, entropy: 0, information: 0 };
    const read = all.mean && argmax(all.mean);
    const agreeing = probs.filter((p) => argmax(p) === read).length;

    show(place.mean, all.mean, read);
    show(place.plain, plainProbs, read);
    lines.forEach(({ line }, i) => (line.hidden = i >= count));
    chosen.forEach((i) => show(lines[i], probs[i], read));
    place.mean.values.forEach((value, digit) => {
      const p = all.mean ? all.mean[digit] : 0;
      value.textContent = p >= 0.005 ? Math.round(100 * p) : "";
      value.style.bottom = `${100 * p}%`;
    });
    const label = index === null ? null : network.labels[index];
    place.mean.digits.forEach((cell, digit) => {
      cell.classList.toggle("digit-true", digit === label);
    });

    find("entropy").textContent = `${all.entropy.toFixed(3)} nats`;
    find("information").textContent = `${all.information.toFixed(3)} nats`;
    const most = Math.log(CLASSES);
    find("entropy-bar").style.transform = `scaleX(${all.entropy / most})`;
    find("information-bar").style.transform = `scaleX(${all.information / most})`;
    find("count-shown").textContent = count;
    find("test-shown").textContent =
      index === null ? "none shown" : `${index + 1} of ${network.labels.length}, a ${label}`;
    find("test").setAttribute("aria-valuetext", find("test-shown").textContent);

    const agree =
      count === 1 ? "there is one estimator" : `${agreeing} of ${count} estimators agree`;
    const verdict = label === null ? "" : ` The test digit is a ${label}.`;
    find("status").textContent = pixels
      ? `Reads ${read} with ${percent(all.mean[read])}; ${agree}.${verdict}`
      : "Draw a digit, or step through the test digits.";
    find("chart").setAttribute("aria-label", describe(all.mean, probs, plainProbs));
  }

  function describe(mean, probs, plainProbs) {
    if (!mean) return "Bars for the ten digits, still empty.";
    const likely = [...mean.keys()].sort((a, b) => mean[b] - mean[a]);
    const shares = likely.filter((d) => mean[d] >= 0.01).map((d) => `${d} ${percent(mean[d])}`);
    const readings = probs.map(argmax);
    const votes = likely
      .map((digit) => [digit, readings.filter((reading) => reading === digit).length])
      .filter(([, votes]) => votes > 0)
      .map(([digit, votes]) => `${votes} ${votes === 1 ? "reads" : "read"} ${digit}`);
    const alone = argmax(plainProbs);
    return (
      `Mean probabilities: ${shares.join(", ")}. Of the estimators, ${votes.join(", ")}. ` +
      `The plain network reads ${alone} with ${percent(plainProbs[alone])}.`
    );
  }

  // At most one update a frame, however many events there are.
  function updateSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (drawn) readPad();
      update();
    });
  }

  function showPixels() {
    const image = new ImageData(SIDE, SIDE);
    image.data.forEach((_, i, data) => (data[i] = i % 4 === 3 ? 255 : (pixels?.[i >> 2] ?? 0)));
    seen.putImageData(image, 0, 0);
  }

  function readPad() {
    const { data } = ink.getImageData(0, 0, pad.width, pad.height);
    const red = new Uint8Array(pad.width * pad.height);
    for (let i = 0; i < red.length; i++) red[i] = data[4 * i];
    pixels = centre(red, pad.width);
    showPixels();
  }

  function clear() {
    index = null;
    drawn = true;
    find("hint").hidden = false;
    ink.fillStyle = "black";
    ink.fillRect(0, 0, pad.width, pad.height);
    updateSoon();
  }

  function showDigit(number) {
    index = number;
    find("test").value = number + 1;
    showImage(digits.subarray(index * SIDE ** 2, (index + 1) * SIDE ** 2));
  }

  // An image that is given as the network gets it.
  function showImage(image) {
    drawn = false;
    pixels = image;
    showPixels();
    ink.imageSmoothingEnabled = false;
    ink.drawImage(seen.canvas, 0, 0, pad.width, pad.height);
    updateSoon();
  }

  function step(by) {
    const { length } = network.labels;
    showDigit((find("test").valueAsNumber - 1 + by + length) % length);
  }

  // --- A link that carries the image and the size of the mini-batches in its fragment ---

  // Base64 that an address may hold, of the bytes; a 0 is followed by how many more there are.
  function pack(image) {
    const packed = [];
    for (let i = 0; i < image.length; i++) {
      packed.push(image[i]);
      if (image[i] !== 0) continue;
      const start = i;
      while (i + 1 < image.length && image[i + 1] === 0 && i - start < 255) i++;
      packed.push(i - start);
    }
    return btoa(String.fromCharCode(...packed)).replaceAll("+", "-").replaceAll("/", "_");
  }

  function unpack(text) {
    const packed = bytes(text.replaceAll("-", "+").replaceAll("_", "/"));
    const image = [];
    for (let i = 0; i < packed.length; i++) {
      image.push(...(packed[i] === 0 ? Array(packed[++i] + 1).fill(0) : [packed[i]]));
    }
    if (image.length !== SIDE ** 2) throw new RangeError("no image");
    return Uint8Array.from(image);
  }

  function link() {
    if (!pixels) return;
    history.replaceState(null, "", `#drawing=${pack(pixels)}&m=${size()}`);
    const copied = navigator.clipboard?.writeText(location.href) ?? Promise.reject();
    copied.then(
      () => (find("link-said").textContent = "copied"),
      () => (find("link-said").textContent = "now in the address bar"),
    );
  }

  // What the address asks for, if it asks for anything; a text that is no image is ignored.
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const each of sizes) if (each.value === asked.get("m")) each.checked = true;
    try {
      const image = unpack(asked.get("drawing") ?? "");
      index = null;
      find("hint").hidden = true;
      showImage(image);
      return true;
    } catch {
      return false;
    }
  }

  // --- The pen ---

  let last = null; // where the stroke in progress is

  function stroke(event) {
    const frame = pad.getBoundingClientRect();
    // A browser may sum up several moves in one event; the first of a stroke has none before it.
    const moves = event.getCoalescedEvents?.() ?? [];
    ink.beginPath();
    for (const { clientX, clientY } of moves.length ? moves : [event]) {
      const point = [clientX - frame.left, clientY - frame.top].map(
        (length) => (length * pad.width) / frame.width,
      );
      ink.moveTo(...(last ?? [point[0] - 0.1, point[1]])); // a line without length leaves no dot
      ink.lineTo(...point);
      last = point;
    }
    ink.stroke();
    updateSoon();
  }

  pad.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    pad.setPointerCapture(event.pointerId);
    find("status").setAttribute("aria-busy", "true"); // to be read out when the stroke is done
    if (!drawn) clear(); // a stroke over a test digit begins a drawing
    find("hint").hidden = true;
    last = null;
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (pad.hasPointerCapture(event.pointerId)) stroke(event);
  });
  pad.addEventListener("lostpointercapture", () => find("status").removeAttribute("aria-busy"));

  find("clear").addEventListener("click", clear);
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  find("test").addEventListener("input", () => showDigit(find("test").valueAsNumber - 1));
  find("count").addEventListener("input", updateSoon);
  for (const each of sizes) each.addEventListener("change", updateSoon);
  find("link").addEventListener("click", link);
  addEventListener("hashchange", follow);

  Object.assign(ink, { lineCap: "round", lineJoin: "round", strokeStyle: "white" });
  ink.lineWidth = (PEN * pad.width) / SIDE;
  if (!follow()) showDigit(0);
  globalThis.drawADigit = { centre, logits, update, numEstimators }; // for the tests
})();
