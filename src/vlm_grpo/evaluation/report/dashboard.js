"use strict";
// Draws the page from the data inside it. Text of models and files only ever becomes text nodes.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 10; // groups shown at once
const WIDTH = 320, HEIGHT = 168, LEFT = 44, RIGHT = 8, TOP = 10, BOTTOM = 20;

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return String(+value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size < 0.1 ? 4 : 3));
}

function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  if (seconds < 90) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  if (seconds < 5400) return (seconds / 60).toFixed(0) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

// --- head ---------------------------------------------------------------------------------------------------------

function head() {
  const facts = DATA.facts, left = Math.max(0, facts.steps - facts.step);
  document.title = `${facts.title}: step ${facts.step}`;
  byId("title").textContent = facts.title;
  byId("done").style.width = 100 * Math.min(1, facts.step / Math.max(1, facts.steps)) + "%";
  const state = facts.is_over || !left ? "finished" : `about ${duration(left * facts.seconds_a_step)} left`;
  const lines = [
    ["step", `${facts.step} of ${facts.steps}`], ["epoch", shown(facts.epoch)],
    ["", facts.step || facts.is_over ? state : "starting"],
    ["a step", duration(facts.step ? facts.seconds_a_step : NaN)],
    ["processes", facts.processes], ["trainer", facts.trainer], ["model", facts.model],
    ["written", new Date(facts.written * 1000).toLocaleString()],
  ];
  for (const [name, value] of lines) {
    if (value === "") continue;
    const line = element("span", "", name ? name + " " : "");
    line.append(element("b", "", value));
    byId("facts").append(line);
  }
  byId("warning").textContent = facts.warning || "";
  byId("warning").hidden = !facts.warning;
}

// --- curves -------------------------------------------------------------------------------------------------------

const STEPS = DATA.points.map((row) => row[0]);
const column = (name) => {
  const place = DATA.columns.indexOf(name) + 1;
  return place ? DATA.points.map((row) => row[place] ?? null) : null;
};
const marksOf = (names) => DATA.marks.flatMap((mark) => names.filter((name) => name in mark.values)
  .slice(0, 1).map((name) => [mark.step, mark.values[name]]));
const IS_SHARE = /clipped_ratio$|frac_reward_zero_std$|region_mean$|_ratio$/;

function chartList() {
  const used = new Set(), sections = [];
  const chart = (name, title, options = {}) => {
    const values = column(name);
    const reward = /^rewards\/(.*)\/mean$/.exec(name);
    const evaluations = ["eval_" + name, ...(reward ? ["eval_" + reward[1]] : [])];
    const marks = marksOf(evaluations);
    [name, ...evaluations, options.low, options.high].forEach((each) => used.add(each));
    if (!marks.length && !(values && values.some((value) => value !== null))) return [];
    return [{ name, title, values: values || [], marks, low: column(options.low), high: column(options.high) }];
  };
  const rewards = DATA.columns.filter((name) => /^rewards\/.*\/mean$/.test(name));
  sections.push(["Rewards", [
    ...chart("reward", "reward, weighted sum"),
    ...rewards.flatMap((name) => chart(name, name.slice(8, -5))),
    ...chart("frac_reward_zero_std", "groups of equal rewards"),
  ]]);
  sections.push(["Completions", [
    ...chart("completions/mean_length", "tokens of a completion",
      { low: "completions/min_length", high: "completions/max_length" }),
    ...chart("completions/clipped_ratio", "truncated completions"),
    ...chart("entropy", "entropy"),
  ]]);
  sections.push(["Optimization", [
    ...chart("kl", "KL to the reference"),
    ...chart("clip_ratio/region_mean", "clipped tokens"),
    ...chart("cispo_clip_ratio", "clipped tokens (CISPO)"),
    ...chart("loss", "loss"), ...chart("grad_norm", "gradient norm"),
    ...chart("learning_rate", "learning rate"), ...chart("step_time", "seconds of a step"),
  ]]);
  const evaluations = [...new Set(DATA.marks.flatMap((mark) => Object.keys(mark.values)))];
  sections.splice(1, 0, ["Evaluation",
    evaluations.filter((name) => !used.has(name)).map((name) =>
      ({ name, title: name.slice(5), values: [], marks: marksOf([name]) }))]);
  const others = DATA.columns.filter((name) => !used.has(name)).flatMap((name) => chart(name, name));
  return { sections: sections.filter(([, charts]) => charts.length), others };
}

function smoothed(values, share) {
  const reach = Math.round((values.length * share) / 2);
  if (!reach) return values;
  return values.map((value, at) => {
    if (value === null) return null;
    let sum = 0, weights = 0;
    for (let other = Math.max(0, at - reach); other <= Math.min(values.length - 1, at + reach); other++) {
      if (values[other] === null) continue;
      const weight = reach + 1 - Math.abs(other - at);
      sum += weight * values[other];
      weights += weight;
    }
    return sum / weights;
  });
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((size) => size * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / width - 1e-9); at * width <= high + width * 1e-9; at++) found.push(at * width);
  return found;
}

function limits(chart) {
  const all = [chart.values, chart.low, chart.high, chart.marks.map(([, value]) => value)]
    .flatMap((values) => values || []).filter((value) => value !== null);
  let low = Infinity, high = -Infinity;
  for (const value of all) { low = Math.min(low, value); high = Math.max(high, value); }
  if (IS_SHARE.test(chart.name)) return [Math.min(0, low), Math.max(high <= 0.1 ? 0.1 : 1, high)];
  if (low > 0 && low < high * 0.6) low = 0;
  if (high < 0 && high > low * 0.6) high = 0;
  if (low === 0 && high === 0) return [0, 1]; // a line on the bottom
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return [low === 0 ? 0 : low - room, high === 0 ? 0 : high + room];
}

function svgNode(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}
const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

function lineOf(values, x, y) {
  let path = "", pen = "M";
  values.forEach((value, at) => {
    if (value === null) { pen = "M"; return; }
    path += `${pen}${x(STEPS[at]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function draw(chart, share) {
  const card = element("div", "chart"), top = element("div", "head");
  const now = element("span", "now");
  top.append(element("h3", "", chart.title), now);
  card.append(top);
  const lastStep = Math.max(1, STEPS.at(-1) ?? 0, ...DATA.marks.slice(-1).map((mark) => mark.step));
  const [low, high] = limits(chart);
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / lastStep;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const svg = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, card);
  svgNode("title", {}, svg).textContent = chart.title;
  for (const value of ticks(low, high, 5)) {
    svgNode("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }, svg);
    svgNode("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, svg).textContent = shown(value);
  }
  for (const step of ticks(0, lastStep, 4).filter(Number.isInteger)) {
    const anchor = step === 0 ? "start" : x(step) > WIDTH - 26 ? "end" : "middle";
    svgNode("text", { x: x(step), y: HEIGHT - 6, "text-anchor": anchor }, svg).textContent = String(step);
  }
  if (chart.low && chart.high) {
    const both = STEPS.map((step, at) => [step, chart.low[at], chart.high[at]]).filter((row) => !row.includes(null));
    const edge = [...both.map((row) => [row[0], row[2]]), ...both.reverse().map((row) => [row[0], row[1]])];
    const points = edge.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    svgNode("polygon", { class: "band", points }, svg);
  }
  const smooth = chart.name === "learning_rate" ? chart.values : smoothed(chart.values, share);
  if (share && chart.values.length > 2) svgNode("path", { class: "raw", d: lineOf(chart.values, x, y) }, svg);
  svgNode("path", { class: "curve", d: lineOf(smooth, x, y) }, svg);
  if (chart.values.filter((value) => value !== null).length === 1) {
    const at = chart.values.findIndex((value) => value !== null);
    svgNode("circle", { cx: x(STEPS[at]), cy: y(chart.values[at]), r: 3, fill: "var(--blue)" }, svg);
  }
  const spots = chart.marks.map(([step, value]) => [x(step), y(value)]);
  svgNode("polyline", { class: "marks", points: spots.map((spot) => spot.join(",")).join(" ") }, svg);
  for (const [left, top_] of spots.length > 60 ? [] : spots)
    svgNode("path", { class: "mark", d: `M${left - 4} ${top_}l4 -4l4 4l-4 4z` }, svg);
  const at = svgNode("line", { class: "at", y1: TOP, y2: HEIGHT - BOTTOM }, svg);
  follow(svg, chart, smooth, now, at, x, lastStep);
  return card;
}

function lastOf(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== null) return values[at];
  return null;
}

// The number beside a chart's name: its last value, or while the pointer is over the chart, the value there.
function follow(svg, chart, smooth, now, at, x, lastStep) {
  const mark = chart.marks.at(-1);
  const rest = () => {
    at.style.visibility = "hidden";
    now.replaceChildren(shown(lastOf(smooth) ?? mark?.[1]));
    if (mark && chart.values.length) now.append(" ", element("span", "key", "◆ " + shown(mark[1])));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    const step = Math.min(1, Math.max(0, place)) * lastStep;
    const list = chart.values.length ? STEPS.map((each, index) => [each, chart.values[index]]) : chart.marks;
    const near = list.reduce((best, each) =>
      each[1] !== null && (!best || Math.abs(each[0] - step) < Math.abs(best[0] - step)) ? each : best, null);
    if (!near) return;
    at.setAttribute("x1", x(near[0])); at.setAttribute("x2", x(near[0]));
    at.style.visibility = "visible";
    now.textContent = `step ${near[0]}: ${shown(near[1])}`;
  });
  svg.addEventListener("pointerleave", rest);
  rest();
}

const CHARTS = chartList();
function drawAll() {
  const share = Number(byId("smoothing").value), place = byId("charts");
  const isOpen = place.querySelector("details")?.open;
  const grid = (charts) => {
    const node = element("div", "charts");
    node.append(...charts.map((chart) => draw(chart, share)));
    return node;
  };
  place.replaceChildren();
  for (const [title, charts] of CHARTS.sections) place.append(element("p", "soft", title), grid(charts));
  if (!CHARTS.sections.length) place.append(element("p", "soft", "Nothing has been logged yet."));
  if (CHARTS.others.length) {
    const more = element("details");
    more.open = Boolean(isOpen);
    more.append(element("summary", "", `${CHARTS.others.length} more metrics`));
    more.addEventListener("toggle", () => {
      if (more.open && more.children.length < 2) more.append(grid(CHARTS.others));
    });
    place.append(more);
  }
  byId("key").hidden = !DATA.marks.length;
}

// --- completions --------------------------------------------------------------------------------------------------

const NAMES = [...new Set(DATA.groups.flatMap((group) => group.completions.flatMap((c) => Object.keys(c.rewards))))];
const firstNew = DATA.groups.length - DATA.newest;
let limit = PAGE;

const rewardOf = (completion, name) => (name ? completion.rewards[name] ?? null : completion.reward);
const numberIn = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
const allValues = (group, name) => group.completions.map((c) => rewardOf(c, name)).filter((value) => value !== null);

function selected() {
  const query = byId("query").value.trim().toLowerCase(), name = byId("reward").value;
  const least = numberIn("least"), most = numberIn("most"), kept = byId("kept").value;
  const found = [];
  DATA.groups.forEach((group, place) => {
    if ((kept === "newest" && place < firstNew) || (kept === "older" && place >= firstNew)) return;
    if (byId("differ").checked && !group.completions.some((c) => c.advantage !== 0)) return;
    const inGroup = !query || `${group.prompt}\n${group.truth}`.toLowerCase().includes(query);
    const completions = group.completions.filter((completion) => {
      const value = rewardOf(completion, name);
      if ((least !== null && !(value !== null && value >= least)) || (most !== null && !(value !== null && value <= most)))
        return false;
      return inGroup || completion.text.toLowerCase().includes(query);
    });
    if (completions.length) found.push({ group, completions });
  });
  return ordered(found, name);
}

function ordered(found, name) {
  const order = byId("order").value;
  const key = {
    old: ({ group }) => group.number, new: ({ group }) => -group.number,
    high: ({ group }) => -Math.max(...allValues(group, name)), low: ({ group }) => Math.min(...allValues(group, name)),
    spread: ({ group }) => Math.min(...allValues(group, name)) - Math.max(...allValues(group, name)),
  }[order];
  return found.map((each) => [key(each), each]).sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0)).map((p) => p[1]);
}

function marked(node, text, query) {
  const lower = text.toLowerCase();
  let from = 0;
  for (let at; query && (at = lower.indexOf(query, from)) >= 0; from = at + query.length)
    node.append(text.slice(from, at), element("mark", "", text.slice(at, at + query.length)));
  node.append(text.slice(from));
  return node;
}

function completionNode(completion, query) {
  const node = element("div", "completion"), numbers = element("div", "numbers");
  const names = Object.keys(completion.rewards);
  if (names.length !== 1) numbers.append(element("span", "", `reward ${shown(completion.reward)}`));
  for (const name of names) numbers.append(element("span", "", `${name} ${shown(completion.rewards[name])}`));
  const sign = completion.advantage > 0 ? "+" : "";
  numbers.append(element("span", completion.advantage > 0 ? "up" : completion.advantage < 0 ? "down" : "",
    `advantage ${sign}${shown(completion.advantage)}`), element("span", "", `${completion.tokens} tokens`));
  if (completion.is_truncated) numbers.append(element("span", "cut", "truncated"));
  const text = marked(element("div", "text"), completion.text || "(empty)", query);
  node.append(numbers, text);
  if (completion.text.length > 300 || completion.text.split("\n").length > 4) {
    const button = element("button", "", "show all");
    button.addEventListener("click", () => {
      button.textContent = text.classList.toggle("open") ? "show less" : "show all";
    });
    node.append(button);
  }
  return node;
}

function groupNode({ group, completions }, query) {
  const node = element("div", "group"), side = element("div", "side"), list = element("div");
  const images = element("div", "images");
  for (const name of group.images) {
    const image = element("img");
    image.alt = "image of the prompt";
    image.loading = "lazy";
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 112));
    image.addEventListener("error", () => image.replaceWith(element("span", "soft", "(deleted since; reload the page)")));
    image.src = "images/" + name;
    images.append(image);
  }
  if (group.more_images) images.append(element("span", "soft", `and ${group.more_images} more`));
  const hidden = group.completions.length - completions.length, unseen = group.of - group.completions.length;
  side.append(images, marked(element("div", "text prompt"), group.prompt, query));
  if (group.truth) side.append(marked(element("div", "text", "gold answer: "), group.truth, query));
  side.append(element("div", "soft", `step ${group.step}` + (unseen ? `, ${group.completions.length} of ${group.of} completions` : "")));
  list.append(...completions.map((completion) => completionNode(completion, query)));
  if (hidden) list.append(element("div", "soft", `${hidden} more of this prompt do not match`));
  node.append(side, list);
  return node;
}

function showGroups() {
  const found = selected(), query = byId("query").value.trim().toLowerCase();
  const count = (groups) => groups.reduce((sum, each) => sum + each.completions.length, 0);
  byId("count").textContent = DATA.groups.length
    ? `${count(found)} of ${count(DATA.groups)} completions, ${found.length} of ${DATA.groups.length} prompts`
    : "No completions yet.";
  byId("groups").replaceChildren(...found.slice(0, limit).map((each) => groupNode(each, query)));
  byId("more").hidden = found.length <= limit;
}

// --- controls: their values stand in the address, so that a reload keeps them -------------------------------------------

const CONTROLS = ["smoothing", "reload", "query", "reward", "least", "most", "order", "kept", "differ"].map(byId);
const DEFAULTS = {};

function remember() {
  const values = new URLSearchParams();
  for (const control of CONTROLS) {
    const value = control.type === "checkbox" ? (control.checked ? "1" : "") : control.value;
    if (value !== DEFAULTS[control.id]) values.set(control.id, value);
  }
  history.replaceState(null, "", "#" + values);
}

function recall() {
  const values = new URLSearchParams(location.hash.slice(1));
  for (const control of CONTROLS) {
    DEFAULTS[control.id] = control.type === "checkbox" ? "" : control.value;
    if (!values.has(control.id)) continue;
    if (control.type === "checkbox") control.checked = values.get(control.id) === "1";
    else control.value = values.get(control.id);
  }
}

function start() {
  head();
  byId("reward").append(new Option("weighted sum", ""), ...NAMES.map((name) => new Option(name, name)));
  const values = DATA.groups.flatMap((group) => allValues(group, ""));
  if (values.length) byId("least").placeholder = shown(Math.min(...values));
  if (values.length) byId("most").placeholder = shown(Math.max(...values));
  byId("about").textContent = `The newest ${DATA.newest} prompts` + (firstNew ? ` and ${firstNew} older ones` : "") +
    " of the main process with their completions, rewards, and the advantages that the loss used.";
  for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", (event) => {
    event.preventDefault(); // the address keeps the controls
    document.querySelector(link.getAttribute("href")).scrollIntoView();
  });
  recall();
  drawAll();
  showGroups();
  byId("smoothing").addEventListener("change", drawAll);
  byId("filters").addEventListener("input", () => { limit = PAGE; showGroups(); });
  byId("more").addEventListener("click", () => { limit += PAGE; showGroups(); });
  for (const control of CONTROLS) control.addEventListener("input", remember);
  setInterval(() => { if (byId("reload").checked && !DATA.facts.is_over) location.reload(); }, 30000);
}
start();
