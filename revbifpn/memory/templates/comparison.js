// The comparison: a sortable table, and memory against compute and accuracy.
const rows = data.rows;
const families = [...new Set(rows.map((row) => row.family))];
const printed = (row) => row.method === data.printed;
const modes = [...new Set(rows.filter((row) => !printed(row)).map((row) => row.mode))];
const familyColour = (row) => data.familyColours[families.indexOf(row.family) % data.familyColours.length];
const shapes = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z", "M-4.4-4.4h8.8v8.8h-8.8Z", "M0-5.6L5.4 4.2H-5.4Z", "M0-6L6 0L0 6L-6 0Z",
  "M0 5.6L5.4-4.2H-5.4Z", "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3Z"];
const shapeOf = (row) => shapes[Math.max(modes.indexOf(row.mode), 0) % shapes.length];
const marker = (shape, colour, hollow) => svg("path", { class: "point", d: shape,
  style: hollow ? `fill:var(--card);stroke:${colour ?? "var(--quiet)"};stroke-dasharray:2 1.5` : `fill:${colour ?? "var(--quiet)"};stroke:var(--card)` });
const accuracy = data.accuracies[0] ?? { key: "top1", name: "published accuracy" };
const columns = [
  ["model", "name"], ["family", "family"], ["mode", "mode"], ["method", "method"],
  ["image", "image", formatImage, (row) => (row.image ? row.image[0] * row.image[1] : null)],
  ["batch", "batch", String], ["parameters", "params", formatCount], ["MACs", "macs", formatCount],
  ...Object.entries(data.memories).filter(([key]) => key === "per_sample" || key === data.memory.key)
    .map(([key, name]) => [name, key, formatBytes]),
  ["whole step", "peak", formatBytes],
  ...data.accuracies.map(({ key, name }) => [name, key, (value) => value.toFixed(1)]),
];
let order = { column: -1, sign: 1 };

function drawRows() {
  const valueOf = ([, key, , special], row) => (special ? special(row) : row[key]);
  const sorted = [...rows];
  if (order.column >= 0) sorted.sort((a, b) => {
    const [left, right] = [valueOf(columns[order.column], a), valueOf(columns[order.column], b)];
    if (left === null || right === null) return (left === null) - (right === null); // unknown comes last in both orders
    return order.sign * (typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true }));
  });
  const heads = columns.map(([name, , numeric]) => [name, Boolean(numeric)]);
  const node = table(null, heads, sorted.map((row) => columns.map((column) => {
    const value = valueOf(column, row);
    return value === null ? "–" : column[2] ? column[2](row[column[1]]) : value;
  })));
  node.querySelectorAll("th").forEach((head, at) => {
    const sort = () => {
      order = { column: at, sign: order.column === at ? -order.sign : 1 };
      drawRows();
      byId("rows").querySelectorAll("th button")[at].focus();
    };
    head.replaceChildren(html("button", { type: "button", onclick: sort }, columns[at][0]));
    if (order.column === at) head.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
  });
  byId("rows").replaceChildren(node);
}

function drawScatter(id, key, name, log) {
  const shown = rows.filter((row) => row[key] !== null && row[data.memory.key] > 0 && (!log || row[key] > 0));
  if (!shown.length) {
    byId(id).replaceChildren(html("p", { class: "quiet" }, `No figures for ${name}.`));
    return;
  }
  const [plot, width] = canvas(byId(id), 380, { role: "group", "aria-label": `${data.memory.name} against ${name}` });
  const box = { left: 62, right: width - 16, top: 12, bottom: 334 };
  const scale = (values, isLog, low, high) => {
    const [f, g] = isLog ? [Math.log, Math.exp] : [(v) => v, (v) => v];
    const [least, most] = [f(Math.min(...values)), f(Math.max(...values))];
    const pad = 0.08 * (most - least) || (isLog ? 0.5 : 1);
    const at = (value) => low + ((f(value) - least + pad) / (most - least + 2 * pad)) * (high - low);
    return [at, g(least - pad), g(most + pad)];
  };
  const [x, xLow, xHigh] = scale(shown.map((row) => row[key]), log, box.left, box.right);
  const [y, yLow, yHigh] = scale(shown.map((row) => row[data.memory.key]), true, box.bottom, box.top);
  const xTicks = log ? logTicks(xLow, xHigh, width - 80, 110) : linearTicks(xLow, xHigh, width / 110);
  plot.append(axes(xTicks.map((t) => [t, log ? formatCount(t) : t]), logTicks(yLow, yHigh, 320, 60).map((t) => [t, formatBytes(t)]), x, y, box, name));
  const spots = shown.map((row) => [row, x(row[key]), y(row[data.memory.key])]);
  for (const line of Map.groupBy(spots, ([row]) => [row.family, row.mode, row.method].join("\n")).values()) {
    const points = line.toSorted((a, b) => a[1] - b[1]).map(([, px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`);
    plot.append(svg("polyline", { class: "series", points: points.join(" "), stroke: familyColour(line[0][0]),
      "stroke-dasharray": printed(line[0][0]) ? "3 3" : null }));
  }
  const taken = spots.map(([, px, py]) => [px - 7, py - 7, px + 7, py + 7]);
  const named = new Set();
  for (const [row, px, py] of spots.toSorted((a, b) => printed(a[0]) - printed(b[0]) || b[2] - a[2])) {
    if (named.has(row.name)) continue;
    const short = row.name.replace(new RegExp(`^(tf_)?${row.family.replace(/\W/g, "\\$&")}_`), "");
    const wide = 6.4 * short.length;
    const free = [[8, 4], [-8 - wide, 4], [-wide / 2, 19], [-wide / 2, -10], [8, 16], [-8 - wide, 16], [8, -8], [-8 - wide, -8]]
      .map(([dx, dy]) => [px + dx, py + dy - 11, px + dx + wide, py + dy + 2])
      .find(([l, t, r, b]) => l > box.left && r < width && t > 0 && b < box.bottom &&
        !taken.some(([tl, tt, tr, tb]) => l < tr && r > tl && t < tb && b > tt));
    if (!free) continue;
    named.add(row.name);
    taken.push(free);
    plot.append(svg("text", { class: "halo", x: free[0], y: free[3] - 2 }, short));
  }
  for (const [row, px, py] of spots) {
    const known = (value, format) => (value === null ? "" : format(value));
    const facts = [["mode", row.mode], ["method", row.method],
      ...Object.entries(data.memories).map(([key, name]) => [name, known(row[key], formatBytes)]),
      ["whole step", known(row.peak, formatBytes)], ["MACs", known(row.macs, formatCount)],
      ...data.accuracies.map(({ key, name }) => [name, known(row[key], String)]),
      ["parameters", known(row.params, formatCount)], ["batch", known(row.batch, String)], ["image", known(row.image, formatImage)]];
    const scaling = row.mode === modes[0] && !printed(row) ? " scale(1.4)" : ""; // shows behind an equal point of another mode
    const node = svg("g", { transform: `translate(${px} ${py})${scaling}`, tabindex: 0, role: "img", "data-name": row.name, "data-mode": row.mode,
      "aria-label": [row.name, ...facts.filter(([, v]) => v).map((fact) => fact.join(" "))].join(", "),
      onpointerleave: hideTooltip, onblur: hideTooltip }, marker(shapeOf(row), familyColour(row), printed(row)));
    const show = () => showAt(node, row.name, facts);
    plot.append(fill(node, { onpointerenter: show, onfocus: show }, []));
  }
}

function drawComparison() {
  byId("memory-text").textContent = data.memory.text;
  const sample = (node, name) => html("span", {}, svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14" }, node), name);
  byId("scatter-legend").replaceChildren(
    ...families.map((family) => sample(marker(shapes[0], familyColour({ family })), family)),
    ...modes.map((mode) => sample(marker(shapeOf({ mode })), mode || "one mode")),
    rows.some(printed) ? sample(marker(shapes[0], null, true), data.printed) : "");
  drawScatter("scatter-macs", "macs", "MACs of one sample's forward pass", true);
  drawScatter("scatter-accuracy", accuracy.key, accuracy.name, false);
}
