// The page of ExplainIt!: asks the server, draws what comes. All names are set as text, never as HTML.
"use strict";

const $ = (name) => document.getElementById(name);
const SIGNED = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"];
const STRENGTH = ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"];
const state = { info: null, token: "", source: null, job: null, next: 0, timer: null, cells: new Map(), said: new Map(), events: [], mark: null, title: "", run: 0, images: {}, busy: false };

// ---- elements and the server

function make(name, settings = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(settings)) {
    if (key === "class") made.className = value;
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function complain(sentence) {
  $("alert").textContent = sentence.length > 200 ? sentence.slice(0, 197) + "..." : sentence;
  $("alert").hidden = !sentence;
}

async function ask(path, settings = {}) {
  const headers = { ...(settings.headers || {}) };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let answer;
  try {
    answer = await fetch(path, { ...settings, headers });
  } catch {
    throw new Error("The server does not answer; is `explainode serve` still running?");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `The server answered ${answer.status}.`);
  }
  return answer;
}

// ---- colors

function ramp(anchors) {
  const table = new Uint8ClampedArray(256 * 3);
  const rgb = anchors.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (rgb.length - 1), low = Math.min(Math.floor(place), rgb.length - 2), part = place - low;
    for (let c = 0; c < 3; c++) table[i * 3 + c] = rgb[low][c] + part * (rgb[low + 1][c] - rgb[low][c]);
  }
  return table;
}
const TABLES = { signed: ramp(SIGNED), magnitude: ramp(STRENGTH) };

// The 99th percentile of what is not zero: one outlier would leave two colors, zeros would leave none.
function strongest(heat) {
  const values = Array.from(heat, Math.abs).filter((v) => v > 0 && Number.isFinite(v)).sort((a, b) => a - b);
  if (!values.length) return 1;
  return values[Math.floor(0.99 * (values.length - 1))] || values[values.length - 1];
}

function paint(cell) {
  if (!cell.heat) return;
  const { heat, height, width, canvas } = cell, mode = $("mode").value, table = TABLES[mode];
  const row = [...state.cells.values()].filter((other) => other.method === cell.method && other.heat);
  const scale = $("scale").value === "shared" ? Math.max(...row.map((other) => other.strongest)) : cell.strongest;
  canvas.width = width; canvas.height = height;
  const pen = canvas.getContext("2d"), over = $("layout").value === "over", opacity = $("opacity").value / 100;
  const drawn = pen.createImageData(width, height);
  let under = null;
  if (over && state.images[cell.network]) {
    pen.drawImage(state.images[cell.network], 0, 0, width, height);
    under = pen.getImageData(0, 0, width, height).data;
  }
  for (let i = 0; i < heat.length; i++) {
    const value = Number.isFinite(heat[i]) ? Math.max(-1, Math.min(1, heat[i] / scale)) : 0;
    const level = mode === "signed" ? Math.round((value + 1) * 127.5) : Math.round(Math.abs(value) * 255);
    const part = under ? opacity * Math.min(1, Math.abs(value) * 1.4) : 1;
    const gray = under ? 0.3 * under[i * 4] + 0.59 * under[i * 4 + 1] + 0.11 * under[i * 4 + 2] : 0;
    for (let c = 0; c < 3; c++) drawn.data[i * 4 + c] = part * table[level * 3 + c] + (1 - part) * gray;
    drawn.data[i * 4 + 3] = 255;
  }
  pen.putImageData(drawn, 0, 0);
}

function paintAll() {
  for (const cell of state.cells.values()) paint(cell);
  const pen = $("colors").getContext("2d"), table = TABLES[$("mode").value], line = pen.createImageData(256, 1);
  for (let i = 0; i < 256; i++) line.data.set([table[i * 3], table[i * 3 + 1], table[i * 3 + 2], 255], i * 4);
  pen.putImageData(line, 0, 0);
  const signed = $("mode").value === "signed";
  $("low").textContent = signed ? "against the class" : "nothing"; $("middle").textContent = signed ? "0" : ""; $("high").textContent = signed ? "for it" : "strong";
}

// ---- what can be chosen

function chosen(name) {
  return [...document.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value);
}

function choice(group, value, label, note, checked) {
  const box = make("input", { type: "checkbox", name: group, value, checked });
  return make("label", { class: "choice" }, box, make("span", {}, label, note ? make("small", {}, note) : ""));
}

function buildChoices(view) {
  const { networks, methods, controls } = state.info;
  const wanted = view.methods || methods.filter((m) => m.chosen || controls.includes(m.name)).map((m) => m.name);
  const first = [...wanted.filter((name) => methods.some((m) => m.name === name))];
  for (const name of networks.map((n) => n.name)) $("networks").append(choice("network", name, name, "", !view.networks || view.networks.includes(name)));
  for (const m of methods) {
    const note = [m.summary, m.source && `(${m.source})`].filter(Boolean).join(" ");
    const inFront = first.includes(m.name);
    const item = choice("method", m.name, m.name, inFront ? (controls.includes(m.name) ? "control: knows nothing of the network" : "") : note, inFront);
    item.dataset.text = `${m.name} ${note}`.toLowerCase();
    item.title = note;
    (inFront ? $("methods") : $("more")).append(item);
  }
  const names = new Map();
  for (const network of networks) network.classes.forEach((name, k) => names.set(name, k));
  for (const name of names.keys()) $("target").append(make("option", { value: name }, name));
  if (view.target && names.has(view.target)) $("target").value = view.target;
  for (const key of ["mode", "scale", "layout", "noise", "opacity"]) if (view[key]) $(key).value = view[key];
}

function buildGallery() {
  if (!state.info.gallery.length) $("gallery").append(make("p", { class: "quiet" }, "No gallery: upload a picture, or start with --gallery FOLDER."));
  for (const item of state.info.gallery) {
    const said = [...new Set(Object.values(item.predictions).map((p) => p.name))];
    const button = make("button", { type: "button", class: "thumb", "aria-pressed": "false" },
      make("img", { alt: "", width: 96, height: 96 }), make("span", { title: item.title }, item.title),
      make("span", { class: item.disagree ? "disagree" : "", title: said.join(" / ") }, item.disagree ? said.join(" / ") : `all: ${said[0]}`));
    button.setAttribute("aria-label", `${item.title}; ${item.disagree ? "the networks disagree: " : "all networks say "}${said.join(", ")}`);
    thumbnail(button.querySelector("img"), item.number);
    button.addEventListener("click", () => choose({ gallery: item.number }, item.title, button));
    $("gallery").append(button);
  }
}

async function thumbnail(image, number) {
  if (!state.token) { image.loading = "lazy"; image.src = `/api/v1/gallery/${number}.png`; return; }
  try { image.src = URL.createObjectURL(await (await ask(`/api/v1/gallery/${number}.png`)).blob()); } catch (error) { complain(error.message); }
}

// ---- a picture, and its job

function choose(source, title, button) {
  state.source = source; state.original = source; state.title = title;
  $("clear").disabled = true;
  for (const other of document.querySelectorAll(".thumb")) other.setAttribute("aria-pressed", String(other === button));
  start();
}

function take(file) {
  if (!file) return;
  if (file.size > state.info.limits.bytes) return complain(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB, more than ${state.info.limits.bytes / 2 ** 20}; scale it down first.`);
  choose({ body: file }, file.name, null);
}

async function start() {
  complain("");
  if (!state.source) return complain("Choose a picture first: from the gallery, or your own.");
  const methods = chosen("method"), networks = chosen("network");
  if (!methods.length || !networks.length) return complain("Choose at least one method and one network.");
  const run = ++state.run;
  await stop(true);
  if (run !== state.run) return;
  const query = new URLSearchParams({ methods: methods.join(","), networks: networks.join(","), noise: $("noise").value, seed: 0, scores: true });
  if ($("target").value) query.set("target", $("target").value);
  if (state.source.gallery !== undefined) query.set("gallery", state.source.gallery);
  buildGrid(methods, networks);
  busy(true);
  $("status").textContent = "sending ...";
  remember();
  try {
    const told = await (await ask(`/api/v1/explain?${query}`, { method: "POST", body: state.source.body || null })).json();
    if (run !== state.run) { ask(`/api/v1/jobs/${told.job}`, { method: "DELETE" }).catch(() => {}); return; }
    Object.assign(state, { job: told.job, next: 0, events: [], total: told.total });
    $("notes").replaceChildren(...told.notes.map((note) => make("li", {}, note)));
    await loadPictures(told.pictures);
    poll(run);
  } catch (error) {
    if (run !== state.run) return;
    complain(error.message); busy(false); clearGrid("not computed");
    $("status").textContent = "Nothing was computed.";
  }
}

async function loadPictures(pictures) {
  state.images = {};
  for (const [name, address] of Object.entries(pictures)) {
    const image = new Image();
    image.src = address;
    await image.decode();
    state.images[name] = image;
  }
  const largest = Object.values(state.images).reduce((a, b) => (a && a.width >= b.width ? a : b), null);
  if (largest && !state.covering) {
    $("picture").width = largest.width; $("picture").height = largest.height;
    $("picture").getContext("2d").drawImage(largest, 0, 0);
    $("picture").setAttribute("aria-label", `The picture ${state.title} as the networks see it`);
  }
  state.covering = false;
}

async function stop(quiet) {
  clearTimeout(state.timer);
  if (state.job && state.busy) await ask(`/api/v1/jobs/${state.job}`, { method: "DELETE" }).catch(() => {});
  if (!quiet && state.job) { state.run++; busy(false); clearGrid("stopped"); $("status").textContent = "Stopped."; }
}

function busy(is) {
  state.busy = is;
  $("stop").disabled = !is;
  $("grid").setAttribute("aria-busy", String(is));
  for (const button of document.querySelectorAll("#downloads [data-as]")) button.disabled = is || ![...state.cells.values()].some((cell) => cell.heat);
}

async function poll(run) {
  if (run !== state.run) return;
  try {
    const told = await (await ask(`/api/v1/jobs/${state.job}?after=${state.next}`)).json();
    if (run !== state.run) return;
    state.next = told.next;
    for (const event of told.events) { state.events.push(event); show(event); }
    $("progress").max = told.total; $("progress").value = told.made;
    const over = ["done", "failed", "stopped"].includes(told.state);
    const scoring = told.made === told.total;
    $("status").textContent = told.state === "queued" ? `waiting: ${told.position} before this one` : over ? `${told.made} of ${told.total} maps` : scoring ? "all maps are here; measuring them ..." : `${told.made} of ${told.total} maps ...`;
    if (over) {
      if (told.error) complain(told.error);
      clearGrid(told.state === "done" ? "" : "not computed");
      busy(false);
      return;
    }
    state.timer = setTimeout(() => poll(run), 250);
  } catch (error) {
    complain(error.message); busy(false); clearGrid("not computed");
  }
}

// ---- the grid

function buildGrid(methods, networks) {
  state.cells.clear(); state.said.clear();
  const controls = new Set(state.info.methods.filter((m) => m.control).map((m) => m.name));
  $("maps").style.setProperty("--networks", networks.length);
  const head = make("tr", {}, make("th", { scope: "col" }, "method"), ...networks.map((name) => make("th", { scope: "col" }, name)));
  $("maps").tHead.replaceChildren(head);
  const ordered = [...methods.filter((m) => !controls.has(m)), ...methods.filter((m) => controls.has(m))];
  $("maps").tBodies[0].replaceChildren(...ordered.map((method) => {
    const cells = networks.map((network) => {
      const canvas = make("canvas", { width: 1, height: 1, tabIndex: 0, hidden: true, role: "img" });
      const mark = make("span", { class: "mark", hidden: true });
      const why = make("p", { hidden: true });
      const box = make("div", { class: "cell waiting" }, canvas, mark, why);
      const said = make("div", { class: "said" });
      const cell = { network, method, canvas, mark, why, box, said, value: make("div", { class: "value" }), lines: make("div"), heat: null };
      said.append(cell.value, cell.lines);
      canvas.setAttribute("aria-label", `${method} of ${network}, not here yet`);
      state.cells.set(`${network}\n${method}`, cell);
      listen(cell);
      return make("td", {}, box, said);
    });
    const title = make("th", { scope: "row" }, method, " ", controls.has(method) ? make("span", { class: "tag" }, "control") : "");
    title.title = state.info.methods.find((m) => m.name === method)?.summary || "";
    return make("tr", { class: controls.has(method) ? "control" : "" }, title, ...cells);
  }));
  $("predictions").replaceChildren();
}

function clearGrid(word) {
  for (const cell of state.cells.values()) if (!cell.heat && cell.box.classList.contains("waiting")) refuse(cell, word || "not computed");
}

function refuse(cell, sentence) {
  cell.box.classList.remove("waiting");
  cell.why.textContent = sentence; cell.why.hidden = false; cell.canvas.hidden = true;
}

function show(event) {
  const cell = state.cells.get(`${event.network}\n${event.method}`);
  if (event.kind === "network") return showNetwork(event);
  if (!cell) return;
  if (event.kind === "refused") return refuse(cell, event.sentence);
  if (event.kind === "scores") return showScores(cell, event);
  const bytes = Uint8Array.from(atob(event.heat), (c) => c.charCodeAt(0));
  Object.assign(cell, { heat: new Float32Array(bytes.buffer), height: event.height, width: event.width });
  cell.strongest = strongest(cell.heat);
  cell.box.classList.remove("waiting");
  if (event.blank) refuse(cell, event.blank);
  else { cell.canvas.hidden = false; cell.canvas.setAttribute("aria-label", `Map of ${event.network} by ${event.method}. Arrow keys mark a pixel.`); }
  cell.lines.textContent = `${event.seconds < 1 ? event.seconds.toFixed(2) : event.seconds.toFixed(1)} s`;
  paint(cell);
  if ($("scale").value === "shared") for (const other of state.cells.values()) if (other.method === cell.method) paint(other);
  if (state.mark) place();
}

function showNetwork(event) {
  state.said.set(event.network, event);
  const rows = event.predicted.map((p) => {
    const fill = make("i"); fill.style.width = `${100 * p.probability}%`;
    return make("div", { class: "bar" }, fill, make("span", { title: p.name }, p.name), make("b", {}, p.probability.toFixed(2)));
  });
  const explained = event.explained === event.predicted[0].class ? "" : make("div", { class: "quiet" }, `explained: ${event.explained_name} (${event.explained_probability.toFixed(2)})`);
  $("predictions").append(make("div", { class: "network" }, make("strong", {}, event.network), ...rows, explained));
}

function showScores(cell, event) {
  const seconds = cell.lines.textContent;
  cell.lines.replaceChildren();
  if (event.deletion !== undefined) {
    const ahead = event.random_maps && event.ahead_of === event.random_maps;
    const numbers = make("span", { class: ahead ? "ahead" : "" }, `insertion ${event.insertion.toFixed(2)}, deletion ${event.deletion.toFixed(2)}`);
    cell.lines.append(numbers);
    if (event.random_maps) cell.lines.append(make("div", {}, `ahead of ${event.ahead_of} of ${event.random_maps} random maps`));
    cell.lines.append(curve(event));
  } else if (event.sentence) cell.lines.append(event.sentence);
  if (event.sensitivity !== undefined) cell.lines.append(make("div", {}, `moves ${event.sensitivity.toFixed(2)}, noise alone ${event.floor.toFixed(2)}`));
  cell.lines.append(make("div", {}, seconds));
}

function curve(event) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 100 30"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("class", "curve"); svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Probability while pixels come back (${event.insertion.toFixed(2)}) and while they go (${event.deletion.toFixed(2)})`);
  const frame = document.createElementNS(space, "rect"); frame.setAttribute("width", 100); frame.setAttribute("height", 30); svg.append(frame);
  for (const [name, values] of [["ins", event.insertion_curve], ["del", event.deletion_curve]]) {
    const line = document.createElementNS(space, "path");
    line.setAttribute("class", name);
    line.setAttribute("d", values.map((v, i) => `${i ? "L" : "M"}${(100 * event.curve_x[i]).toFixed(1)} ${(29 - 28 * v).toFixed(1)}`).join(""));
    svg.append(line);
  }
  return svg;
}

// ---- one pixel, in all maps

function listen(cell) {
  const at = (event) => { const box = cell.canvas.getBoundingClientRect(); state.mark = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; place(); };
  cell.canvas.addEventListener("pointermove", at);
  cell.canvas.addEventListener("pointerdown", at);
  cell.canvas.addEventListener("pointerleave", () => { state.mark = null; place(); });
  cell.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") { state.mark = null; place(); }
    if (!step) return;
    event.preventDefault();
    const [x, y] = state.mark || [0.5, 0.5];
    state.mark = [Math.min(0.999, Math.max(0, x + step[0] / cell.width)), Math.min(0.999, Math.max(0, y + step[1] / cell.height))];
    place();
  });
}

function place() {
  for (const cell of state.cells.values()) {
    const on = state.mark && cell.heat && !cell.canvas.hidden;
    cell.mark.hidden = !on;
    if (!on) { cell.value.textContent = ""; continue; }
    const [x, y] = state.mark, column = Math.min(cell.width - 1, Math.floor(x * cell.width)), row = Math.min(cell.height - 1, Math.floor(y * cell.height));
    cell.mark.style.left = `${(100 * (column + 0.5)) / cell.width}%`; cell.mark.style.top = `${(100 * (row + 0.5)) / cell.height}%`;
    const value = cell.heat[row * cell.width + column];
    cell.value.textContent = `pixel ${column}, ${row}: ${value === 0 ? "0" : value.toExponential(2)}`;
  }
}

// ---- occluding

function cover(x, y) {
  const canvas = $("picture"), pen = canvas.getContext("2d");
  pen.fillStyle = "#808080";
  pen.beginPath();
  pen.arc(x * canvas.width, y * canvas.height, ($("brush").value / 200) * canvas.width, 0, 2 * Math.PI);
  pen.fill();
  $("clear").disabled = false;
}

let brush = null, drawing = false, later = null;
function brushAt(event) {
  const box = $("picture").getBoundingClientRect();
  brush = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  showBrush();
}
function showBrush() {
  const on = $("occlude").getAttribute("aria-pressed") === "true" && brush;
  $("brush-mark").hidden = !on;
  if (!on) return;
  const size = $("picture").getBoundingClientRect().width * ($("brush").value / 100);
  Object.assign($("brush-mark").style, { left: `${100 * brush[0]}%`, top: `${100 * brush[1]}%`, width: `${size}px`, height: `${size}px` });
}
function covered() {
  clearTimeout(later);
  later = setTimeout(() => $("picture").toBlob((blob) => { state.source = { body: blob }; state.covering = true; start(); }, "image/png"), 200);
}
function listenToPicture() {
  const canvas = $("picture"), on = () => $("occlude").getAttribute("aria-pressed") === "true" && state.source;
  $("occlude").addEventListener("click", () => {
    const now = $("occlude").getAttribute("aria-pressed") !== "true";
    $("occlude").setAttribute("aria-pressed", String(now));
    document.querySelector(".stage").classList.toggle("drawing", now);
    if (!now) { brush = null; showBrush(); }
  });
  canvas.addEventListener("pointerdown", (event) => { if (!on()) return; drawing = true; canvas.setPointerCapture(event.pointerId); brushAt(event); cover(...brush); });
  canvas.addEventListener("pointermove", (event) => { if (!on()) return; brushAt(event); if (drawing) cover(...brush); });
  canvas.addEventListener("pointerup", () => { if (drawing) { drawing = false; covered(); } });
  canvas.addEventListener("pointerleave", () => { if (!drawing) { brush = null; showBrush(); } });
  canvas.addEventListener("keydown", (event) => {
    if (!on()) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) { event.preventDefault(); const [x, y] = brush || [0.5, 0.5]; brush = [Math.min(1, Math.max(0, x + 0.05 * step[0])), Math.min(1, Math.max(0, y + 0.05 * step[1]))]; showBrush(); }
    if (event.key === " " || event.key === "Enter") { event.preventDefault(); brush = brush || [0.5, 0.5]; showBrush(); cover(...brush); covered(); }
  });
  $("clear").addEventListener("click", () => { state.source = state.original; $("clear").disabled = true; start(); });
  $("brush").addEventListener("input", showBrush);
}

// ---- links and downloads

function view() {
  const found = { methods: chosen("method").join(","), networks: chosen("network").join(","), target: $("target").value };
  for (const key of ["mode", "scale", "layout", "noise", "opacity"]) found[key] = $(key).value;
  if (state.source && state.source.gallery !== undefined) found.gallery = state.source.gallery;
  return found;
}
function remember() {
  if (!state.info) return;
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(view()).filter(([, value]) => value !== ""))}`);
}
function recall() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const key of ["methods", "networks"]) if (found[key]) found[key] = found[key].split(",");
  if (found.token) state.token = found.token;
  return found;
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function download(kind) {
  try {
    if (kind === "npz") return save(await (await ask(`/api/v1/jobs/${state.job}/maps.npz`)).blob(), "maps.npz");
    if (kind === "html") return save(await (await ask(`/api/v1/jobs/${state.job}/report.html`)).blob(), "explanations.html");
    if (kind === "json") {
      const events = state.events.map(({ heat, ...rest }) => rest);
      return save(new Blob([JSON.stringify({ view: view(), events }, null, 1)], { type: "application/json" }), "scores.json");
    }
    sheet().toBlob((blob) => save(blob, "maps.png"), "image/png");
  } catch (error) { complain(error.message); }
}
function sheet() {
  const networks = chosen("network"), methods = [...new Set([...state.cells.values()].map((cell) => cell.method))], side = 192, left = 150, top = 34;
  const canvas = make("canvas", { width: left + (side + 8) * networks.length, height: top + (side + 8) * methods.length }), pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#171b23"; pen.font = "14px sans-serif"; pen.imageSmoothingEnabled = false;
  networks.forEach((name, column) => pen.fillText(name, left + column * (side + 8), 22, side));
  methods.forEach((method, row) => {
    pen.fillText(method, 8, top + row * (side + 8) + 20, left - 16);
    networks.forEach((network, column) => {
      const cell = state.cells.get(`${network}\n${method}`);
      if (cell && cell.heat) pen.drawImage(cell.canvas, left + column * (side + 8), top + row * (side + 8), side, side);
    });
  });
  return canvas;
}

// ---- the beginning

function listenToPage() {
  for (const name of ["file", "camera"]) $(name).addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
  addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); take(event.dataTransfer.files[0]); });
  $("run").addEventListener("click", start);
  $("stop").addEventListener("click", () => stop(false));
  $("target").addEventListener("change", () => state.source && start());
  for (const name of ["mode", "scale", "layout", "opacity"]) $(name).addEventListener("input", () => { paintAll(); remember(); });
  $("search").addEventListener("input", () => {
    const word = $("search").value.trim().toLowerCase();
    for (const item of $("more").children) item.hidden = !item.dataset.text.includes(word);
  });
  for (const button of document.querySelectorAll("#downloads [data-as]")) button.addEventListener("click", () => download(button.dataset.as));
  $("link").addEventListener("click", async () => {
    remember();
    try { await navigator.clipboard.writeText(location.href); $("link").textContent = "Copied"; } catch { $("link").textContent = "The address bar holds it"; }
    setTimeout(() => { $("link").textContent = "Copy a link to this view"; }, 2000);
  });
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* a private window keeps nothing */ }
  });
  listenToPicture();
}

async function begin() {
  try { const kept = localStorage.getItem("theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* a private window keeps nothing */ }
  const asked = recall();
  listenToPage();
  paintAll();
  try {
    state.info = await (await ask("/api/v1/info")).json();
  } catch (error) { complain(error.message); return; }
  buildChoices(asked);
  buildGallery();
  document.documentElement.dataset.ready = "true";
  const number = asked.gallery === undefined ? 0 : Number(asked.gallery), item = state.info.gallery[number];
  if (item) choose({ gallery: number }, item.title, document.querySelectorAll(".thumb")[number]);
}

begin();
