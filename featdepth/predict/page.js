// Shows what was predicted: frames, their depth, point clouds and the way of the camera. Axes: x right, y down, z forward.
// The address may end in #yaw=30&pitch=20&zoom=1.5&frame=2&cloud=fused&view=above: degrees by which the view turns to the
// right and down, a factor of nearness, the frame from 1, "frame" or "fused", "behind", "camera" or "above".
// The root element says what was done: data-state is "ready", data-points those of the cloud, data-drawn the visible ones.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const canvas = byId("cloud"), context = canvas.getContext("2d");
const MOST_PIXELS = 900000; // of the canvas: more would make turning slow
const LARGEST_DOT = 12; // pixels
const VIEWS = { behind: [14, 12], camera: [0, 0], above: [0, 90] }; // yaw and pitch, degrees
const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]; // rows of [R | t]

const state = { frame: 0, source: data.cloud ? "fused" : "frame", view: "behind", yaw: 0, pitch: 0, zoom: 1, pan: [0, 0, 0] };
const decoded = new Map();
let buffers = null, waiting = false, timer = null;

// ---- clouds

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Points of a stored cloud, moved by a pose; radius: of the dot of each point; colours: as the canvas stores them.
function decode(stored, pose) {
  const count = stored.count, raw = bytesOf(stored.points), rgb = bytesOf(stored.colours);
  const points = new Float32Array(3 * count), radius = new Float32Array(count), rgba = new Uint8Array(4 * count);
  for (let i = 0; i < count; i++) {
    const own = [0, 1, 2].map((axis) => {
      const place = 2 * (3 * i + axis);
      return stored.low[axis] + stored.step[axis] * (raw[place] | (raw[place + 1] << 8));
    });
    radius[i] = stored.spacing * (stored.spreads ? own[2] : 1);
    points.set(moved(pose, own), 3 * i);
    rgba.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  }
  return { count, points, radius, colours: new Uint32Array(rgba.buffer) };
}

function moved(pose, [x, y, z]) {
  return [0, 4, 8].map((row) => pose[row] * x + pose[row + 1] * y + pose[row + 2] * z + pose[row + 3]);
}

// The cloud that is shown; null where this frame has none.
function currentCloud() {
  const isFused = state.source === "fused";
  const stored = isFused ? data.cloud : data.frames[state.frame].cloud;
  if (!stored) return null;
  const key = isFused ? "fused" : state.frame;
  if (!decoded.has(key)) {
    if (decoded.size > 8) decoded.clear();
    decoded.set(key, withExtent(decode(stored, isFused ? IDENTITY : poseOfFrame())));
  }
  return decoded.get(key);
}

// The middle of a cloud, and how far from it most points are.
function withExtent(cloud) {
  const middle = [0, 1, 2].map((axis) => quantile(cloud.points, axis, 0.5));
  const reach = [0, 1, 2].map((axis) => quantile(cloud.points, axis, 0.9) - quantile(cloud.points, axis, 0.1));
  return { ...cloud, middle, reach: Math.max(...reach, 1e-6) };
}

function quantile(points, axis, share) {
  const step = Math.max(1, Math.floor(points.length / 3 / 4000)), values = [];
  for (let i = axis; i < points.length; i += 3 * step) values.push(points[i]);
  return values.sort((a, b) => a - b)[Math.floor(share * (values.length - 1))] || 0;
}

const poseOfFrame = () => data.frames[state.frame].pose || IDENTITY;

// ---- the view

// Where the eye is and how it is turned, for this frame's or the whole cloud.
function eye(cloud) {
  const pose = state.source === "fused" && state.view !== "camera" ? IDENTITY : poseOfFrame();
  const ahead = [pose[2], pose[6], pose[10]], centre = [pose[3], pose[7], pose[11]];
  const near = state.source === "fused" ? 0.5 * cloud.reach : dot(ahead, minus(cloud.middle, centre));
  const range = Math.max(near, 1e-3);
  const heading = Math.atan2(ahead[0], ahead[2]), slope = Math.asin(Math.max(-1, Math.min(1, ahead[1])));
  const yaw = heading + radians(state.yaw);
  const isAbove = state.view === "above";
  const pitch = Math.max(-1.57, Math.min(1.57, (isAbove ? 0 : slope) + radians(state.pitch)));
  const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
  const forward = [sy * cp, sp, cy * cp], right = [cy, 0, -sy];
  const down = cross(forward, right);
  let target = centre.map((value, axis) => value + range * ahead[axis]), distance = range;
  if (isAbove || (state.source === "fused" && state.view === "behind")) {
    // Between the cloud and where the camera was, so that both are in view.
    target = cloud.middle.map((value, axis) => 0.7 * value + 0.3 * centre[axis]);
    distance = cloud.reach;
  }
  if (state.source === "frame" && state.view === "behind") distance = 1.4 * range;
  distance /= state.zoom;
  const place = target.map((value, axis) => value - distance * forward[axis] + state.pan[axis]);
  return { place, right, down, forward, distance };
}

const radians = (degrees) => (degrees * Math.PI) / 180;
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

function setView(name) {
  state.view = name;
  [state.yaw, state.pitch] = VIEWS[name];
  if (name === "behind" && state.source === "fused") state.pitch = 24;
  state.zoom = 1;
  state.pan = [0, 0, 0];
  redraw();
}

function turn(yaw, pitch) {
  state.yaw += yaw;
  state.pitch = Math.max(-90, Math.min(90, state.pitch + pitch));
  redraw();
}

function zoom(factor) {
  state.zoom = Math.max(0.05, Math.min(50, state.zoom * factor));
  redraw();
}

// Move by a part of the height of the canvas.
function move(x, y) {
  const cloud = currentCloud();
  if (!cloud) return;
  const { right, down, distance } = eye(cloud);
  state.pan = state.pan.map((value, axis) => value - distance * (x * right[axis] + y * down[axis]));
  redraw();
}

// ---- drawing

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawCloud();
    drawMap();
  });
}

function fit() {
  const shown = canvas.getBoundingClientRect();
  const ratio = Math.min(window.devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / Math.max(1, shown.width * shown.height)));
  const width = Math.max(1, Math.round(shown.width * ratio)), height = Math.max(1, Math.round(shown.height * ratio));
  if (buffers && canvas.width === width && canvas.height === height) return;
  canvas.width = width;
  canvas.height = height;
  const image = context.createImageData(width, height);
  buffers = { image, pixels: new Uint32Array(image.data.buffer), nearness: new Float32Array(width * height) };
}

function drawCloud() {
  const cloud = currentCloud();
  fit();
  const { width, height } = canvas;
  buffers.pixels.fill(0);
  buffers.nearness.fill(0);
  const look = cloud && eye(cloud);
  const drawn = cloud ? drawPoints(cloud, look, width, height) : 0;
  context.putImageData(buffers.image, 0, 0);
  if (cloud) drawWay(look, width, height);
  byId("count").textContent = cloud ? `${cloud.count.toLocaleString("en")} points.` : "This frame has no point cloud.";
  for (const name of Object.keys(VIEWS)) byId(`view-${name}`).setAttribute("aria-pressed", state.view === name);
  for (const name of ["frame", "fused"]) byId(`source-${name}`).setAttribute("aria-pressed", state.source === name);
  root.dataset.points = cloud ? cloud.count : 0;
  root.dataset.drawn = drawn;
  root.dataset.state = "ready";
}

const focalOf = (width, height) => 0.9 * Math.max(height, 0.6 * width);

// Squares, the nearest of which stays at each pixel; the number of points that got a pixel.
function drawPoints(cloud, look, width, height) {
  const { points, radius, colours } = cloud, { pixels, nearness } = buffers;
  const { place, right, down, forward } = look;
  const focal = focalOf(width, height), size = 1.5 * Number(byId("size").value);
  let drawn = 0;
  for (let i = 0, j = 0; i < cloud.count; i++, j += 3) {
    const x = points[j] - place[0], y = points[j + 1] - place[1], z = points[j + 2] - place[2];
    const depth = x * forward[0] + y * forward[1] + z * forward[2];
    if (depth < 1e-3 * look.distance) continue;
    const scale = focal / depth;
    const side = Math.min(LARGEST_DOT, Math.max(1, Math.ceil(size * radius[i] * scale)));
    const left = Math.round(width / 2 + scale * (x * right[0] + y * right[1] + z * right[2]) - side / 2);
    const top = Math.round(height / 2 + scale * (x * down[0] + y * down[1] + z * down[2]) - side / 2);
    let isVisible = false;
    for (let v = Math.max(0, top); v < Math.min(height, top + side); v++) {
      for (let u = Math.max(0, left), at = v * width + u; u < Math.min(width, left + side); u++, at++) {
        if (scale <= nearness[at]) continue;
        nearness[at] = scale;
        pixels[at] = colours[i];
        isVisible = true;
      }
    }
    if (isVisible) drawn++;
  }
  return drawn;
}

// The way of the camera, and where it is in this frame, on top of the points.
function drawWay(look, width, height) {
  const focal = focalOf(width, height), near = 0.02 * look.distance;
  const seen = (point) => {
    const offset = minus(point, look.place);
    return [dot(offset, look.right), dot(offset, look.down), dot(offset, look.forward)];
  };
  const line = (from, to) => {
    let [a, b] = [seen(from), seen(to)];
    if (a[2] < near && b[2] < near) return;
    if (a[2] < near) [a, b] = [b, a];
    if (b[2] < near) b = b.map((value, axis) => value + ((near - b[2]) / (a[2] - b[2])) * (a[axis] - value));
    context.moveTo(width / 2 + (focal * a[0]) / a[2], height / 2 + (focal * a[1]) / a[2]);
    context.lineTo(width / 2 + (focal * b[0]) / b[2], height / 2 + (focal * b[1]) / b[2]);
  };
  const stroke = (colour, thickness, lines) => {
    context.beginPath();
    lines.forEach(([from, to]) => line(from, to));
    context.strokeStyle = colour;
    context.lineWidth = (thickness * width) / Math.max(1, canvas.getBoundingClientRect().width);
    context.stroke();
  };
  const way = data.trajectory || [];
  stroke("#ff9d5c", 2.5, way.slice(1).map((point, i) => [way[i], point]));
  if (state.view === "camera" && state.zoom === 1) return;
  const picture = data.frames[state.frame], depth = 0.06 * look.distance;
  const half = [0.55 * depth, (0.55 * depth * picture.height) / picture.width];
  const pose = poseOfFrame(), centre = moved(pose, [0, 0, 0]);
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) => moved(pose, [x * half[0], y * half[1], depth]));
  stroke("#7fd4ff", 1.5, corners.flatMap((corner, i) => [[centre, corner], [corner, corners[(i + 1) % 4]]]));
}

// ---- from above

function drawMap() {
  const way = data.trajectory;
  if (!way) return;
  const map = byId("map"), shown = map.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const width = (map.width = Math.round(shown.width * ratio)), height = (map.height = Math.round(shown.height * ratio));
  const pen = map.getContext("2d"), style = getComputedStyle(root), margin = 22 * ratio;
  const colour = (name) => style.getPropertyValue(name).trim();
  const [low, high] = [Math.min, Math.max].map((end) => [0, 2].map((axis) => way.reduce((a, p) => end(a, p[axis]), way[0][axis])));
  const sides = [high[0] - low[0], high[1] - low[1]], around = data.cloud ? 0.4 * Math.max(...sides) : 0;
  const extent = Math.max((sides[0] + around) / (width - 2 * margin), (sides[1] + around) / (height - 2 * margin), 1e-9);
  const at = (x, z) => [
    width / 2 + (x - (low[0] + high[0]) / 2) / extent,
    height / 2 - (z - (low[1] + high[1]) / 2) / extent,
  ];
  drawGround(pen, at, width, height, ratio);
  pen.lineWidth = 2.5 * ratio;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("--accent");
  pen.beginPath();
  way.forEach((point) => pen.lineTo(...at(point[0], point[2])));
  pen.stroke();
  const spot = (x, z, radius, fill) => {
    pen.beginPath();
    pen.arc(...at(x, z), radius * ratio, 0, 2 * Math.PI);
    pen.fillStyle = fill;
    pen.fill();
  };
  spot(way[0][0], way[0][2], 4, colour("--ink"));
  const pose = data.frames[state.frame].pose;
  if (pose) spot(pose[3], pose[11], 6, "#2f9fd8");
  drawScaleBar(pen, extent, height, ratio, colour("--ink"));
}

// The fused cloud under the way, faintly.
function drawGround(pen, at, width, height, ratio) {
  if (!data.cloud) return;
  const source = state.source;
  state.source = "fused";
  const { points, count } = currentCloud();
  state.source = source;
  pen.globalAlpha = 0.25;
  pen.fillStyle = getComputedStyle(root).getPropertyValue("--quiet").trim();
  for (let i = 0; i < count; i += Math.ceil(count / 20000)) {
    const [u, v] = at(points[3 * i], points[3 * i + 2]);
    if (u >= 0 && u < width && v >= 0 && v < height) pen.fillRect(u, v, ratio, ratio);
  }
  pen.globalAlpha = 1;
}

function drawScaleBar(pen, extent, height, ratio, ink) {
  const wanted = 90 * ratio * extent, power = 10 ** Math.floor(Math.log10(wanted));
  const length = [5, 2, 1].find((factor) => factor * power <= wanted) * power;
  pen.fillStyle = ink;
  pen.fillRect(10 * ratio, height - 12 * ratio, length / extent, 2 * ratio);
  pen.font = `${12 * ratio}px system-ui, sans-serif`;
  const shown = Number(length.toPrecision(1));
  pen.fillText(data.metres ? `${shown} m` : `${shown} (relative)`, 10 * ratio, height - 17 * ratio);
}

// ---- what the visitor does

function showFrame(index) {
  state.frame = Math.max(0, Math.min(data.frames.length - 1, index));
  const frame = data.frames[state.frame], count = data.frames.length;
  byId("frame").value = state.frame;
  byId("frame-name").textContent = count > 1 ? `${state.frame + 1} of ${count}: ${frame.name}` : frame.name;
  byId("input").src = frame.image;
  byId("depth").src = frame.depth;
  redraw();
}

function showSource(name) {
  state.source = name === "fused" && data.cloud ? "fused" : "frame";
  setView(state.view);
}

function play() {
  const isPlaying = timer !== null;
  clearInterval(timer);
  timer = isPlaying ? null : setInterval(() => showFrame((state.frame + 1) % data.frames.length), 200);
  byId("play").textContent = isPlaying ? "Play" : "Stop";
}

function followAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const number = (name, use) => {
    const value = Number.parseFloat(wanted.get(name));
    if (Number.isFinite(value)) use(value);
  };
  number("frame", (value) => showFrame(Math.round(value) - 1));
  if (wanted.has("cloud")) showSource(wanted.get("cloud"));
  if (Object.hasOwn(VIEWS, wanted.get("view"))) setView(wanted.get("view"));
  number("yaw", (value) => (state.yaw = value));
  number("pitch", (value) => (state.pitch = Math.max(-90, Math.min(90, value))));
  number("zoom", (value) => (state.zoom = Math.max(0.05, Math.min(50, value))));
  redraw();
}

const KEYS = {
  ArrowLeft: (by) => by(-1, 0), ArrowRight: (by) => by(1, 0), ArrowUp: (by) => by(0, -1), ArrowDown: (by) => by(0, 1),
  "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: () => setView("behind"),
};

function listen() {
  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const x = event.clientX - before.clientX, y = event.clientY - before.clientY, height = canvas.clientHeight;
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    fingers.set(event.pointerId, event);
    if (other) {
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      zoom(apart(event) / Math.max(1, apart(before)));
      move(x / height / 2, y / height / 2);
    } else if (event.shiftKey || event.buttons & 6) move(x / height, y / height);
    else turn(0.3 * x, 0.3 * y);
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => setView("behind"));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-0.0015 * event.deltaY * (event.deltaMode ? 30 : 1)));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key](event.shiftKey ? (x, y) => move(0.05 * x, 0.05 * y) : (x, y) => turn(5 * x, 5 * y));
  });
  for (const name of Object.keys(VIEWS)) byId(`view-${name}`).addEventListener("click", () => setView(name));
  for (const name of ["frame", "fused"]) byId(`source-${name}`).addEventListener("click", () => showSource(name));
  byId("size").addEventListener("input", redraw);
  byId("frame").addEventListener("input", (event) => showFrame(Number(event.target.value)));
  byId("play").addEventListener("click", play);
  window.addEventListener("hashchange", followAddress);
  new ResizeObserver(redraw).observe(document.querySelector("main"));
}

function start() {
  byId("title").textContent = data.title;
  byId("statement").textContent = data.statement;
  byId("warning").textContent = data.warning;
  byId("warning").hidden = !data.warning;
  for (const note of data.notes) byId("notes").appendChild(document.createElement("li")).textContent = note;
  const hasClouds = data.frames.some((frame) => frame.cloud);
  byId("notes").hidden = data.notes.length === 0;
  byId("frame-bar").hidden = data.frames.length === 1;
  byId("frame").max = data.frames.length - 1;
  byId("map-figure").hidden = !data.trajectory;
  byId("sources").hidden = !(data.cloud && hasClouds);
  byId("view").hidden = !(data.cloud || hasClouds);
  document.querySelector("main").classList.toggle("without-cloud", byId("view").hidden);
  listen();
  setView("behind");
  showFrame(0);
  followAddress();
}

start();
