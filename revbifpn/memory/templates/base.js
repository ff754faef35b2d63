// What the other scripts share: texts, elements, the page's data, scales.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const sum = (values) => values.reduce((total, value) => total + value, 0);

// ---- text -----------------------------------------------------------------------------------------------------------
const scaled = (number, base, units) => {
  let size = number;
  let at = 0;
  for (; Math.abs(size) >= 999.5 && at < units.length - 1; at++) size /= base;
  const digits = Math.abs(size) >= 999.5 ? size.toFixed(0) : String(Number(size.toPrecision(3)));
  return `${digits} ${units[at]}`.trim();
};
const formatBytes = (bytes) => scaled(bytes < 999.5 ? Math.round(bytes) : bytes, 1000, ["B", "kB", "MB", "GB", "TB"]);
const formatCount = (count) => scaled(count, 1000, ["", "k", "M", "G", "T"]);
const formatImage = (image) => (image ? image.join(" × ") : "–");
const formatShare = (share) => (share < 0.001 && share > 0 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`);
const shorten = (text, width, perLetter) => {
  const most = Math.floor(width / perLetter);
  return text.length <= most ? text : most < 4 ? "" : `${text.slice(0, most - 1)}…`;
};

// ---- elements -------------------------------------------------------------------------------------------------------
const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
};
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const canvas = (box, height, attributes) => {
  const width = Math.max(box.clientWidth, 240);
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, ...attributes });
  box.replaceChildren(node);
  return [node, width];
};

function table(caption, heads, rows) {
  const cell = (tag, value, numeric) => html(tag, { class: numeric ? "number" : null, scope: tag === "th" ? "col" : null }, value);
  return html("table", {}, caption && html("caption", {}, caption),
    html("thead", {}, html("tr", {}, ...heads.map(([head, numeric]) => cell("th", head, numeric)))),
    html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map((value, at) =>
      value instanceof HTMLTableCellElement ? value : cell("td", value, heads[at][1]))))));
}

const tooltip = byId("tooltip");
const hideTooltip = () => (tooltip.hidden = true);
const showTooltip = (title, facts, x, y) => {
  const list = html("div", {}, ...facts.filter(([, value]) => value).flatMap(([k, v]) => [html("span", {}, k), html("em", {}, v)]));
  tooltip.replaceChildren(html("strong", {}, title), list);
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth - 8 ? x - 16 - width : x + 16;
  const top = y + 16 + height > innerHeight - 8 ? y - 12 - height : y + 16;
  tooltip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tooltip.style.top = `${Math.max(8, top)}px`;
};
const showAt = (node, title, facts) => {
  const box = node.getBoundingClientRect();
  showTooltip(title, facts, box.left + box.width / 2, box.top + box.height / 2);
};

// ---- data -----------------------------------------------------------------------------------------------------------
const text = data.strings;
const reports = data.reports.map((report) => ({
  ...report,
  timeline: report.timeline.map(([index, nbytes, phase, operator, module]) =>
    ({ index, nbytes, phase: text[phase], operator: text[operator], module: text[module] })),
  tensors: report.tensors.map(([nbytes, shape, dtype, category, kind, operator, module, stage, stream, phase]) => ({
    nbytes, shape, dtype: text[dtype], category: text[category], kind: text[kind], operator: text[operator],
    module: text[module], stage: text[stage] || "various stages", stream: text[stream], phase: text[phase],
  })),
}));
const colours = Object.fromEntries(data.categories.map(({ name, colour }) => [name, colour]));
const groups = [];
for (const report of reports) {
  const about = [`batch ${report.batch}`, formatImage(report.image), report.optimizer, report.precision].join(", ");
  let group = groups.find((other) => other.name === report.name && other.about === about);
  if (!group) groups.push((group = { name: report.name, about, reports: [] }));
  group.reports.push(report);
}
const groupLabel = (group) =>
  groups.filter((other) => other.name === group.name).length > 1 ? `${group.name} (${group.about})` : group.name;
const modeLabel = (group, report) => {
  const mode = report.mode || "step";
  const same = group.reports.filter((other) => other.mode === report.mode);
  return same.length > 1 ? `${mode}, ${report.method}, ${report.device}` : mode;
};
const state = { group: groups[0], report: groups[0]?.reports[0], zoom: [] };

// ---- scales ---------------------------------------------------------------------------------------------------------
const linearTicks = (low, high, count) => {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Number(tick.toPrecision(9)));
  return ticks;
};
const logTicks = (low, high, pixels, room) => {
  const factors = pixels / Math.log10(high / low) > room ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of factors) ticks.push(factor * 10 ** power);
  return ticks.filter((tick) => tick >= low && tick <= high);
};
const axes = (xTicks, yTicks, x, y, box, xLabel) =>
  svg("g", { class: "axis" },
    ...yTicks.flatMap(([value, label]) => [
      svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, label)]),
    ...xTicks.map(([value, label]) =>
      svg("text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, label)),
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 35, "text-anchor": "middle" }, xLabel));
