// One report: its figures, its timeline, the treemap of its peak, its tables.
// ---- head -----------------------------------------------------------------------------------------------------------
function drawHead() {
  const { group, report } = state;
  byId("modes").replaceChildren(...group.reports.map((other) =>
    html("button", { type: "button", "aria-pressed": String(other === report), onclick: () => choose(group, other) },
      modeLabel(group, other), " ", html("small", {}, formatBytes(other.peak)))));
  const figures = [
    ["peak of the step", formatBytes(report.peak)],
    ["grows with each sample", formatBytes(report.per_sample)],
    ["batch", report.batch],
    ["image", formatImage(report.image)],
    ["optimizer", report.optimizer],
    ["precision", report.precision],
    ["method", report.method],
    ["device", report.device],
    ["operators", report.num_operators],
  ];
  byId("figures").replaceChildren(...figures.map(([name, value], at) =>
    html("div", { class: at < 2 ? "main" : null }, html("dt", {}, name), html("dd", {}, value))));
  byId("notes").replaceChildren(...report.notes.map((note) => html("li", {}, note)));
  byId("overlay-field").hidden = group.reports.length < 2;
}

function choose(group, report) {
  const button = document.activeElement?.closest("#modes");
  Object.assign(state, { group, report, zoom: [] });
  drawReport();
  if (button) byId("modes").querySelector("[aria-pressed=true]").focus();
}

// ---- timeline -------------------------------------------------------------------------------------------------------
const path = (points, x, y) =>
  points.map((p, at) => (at ? `H${x(p.index).toFixed(1)}V` : `M${x(p.index).toFixed(1)} `) + y(p.nbytes).toFixed(1)).join("");

function phasesOf(report) {
  const phases = [];
  for (const point of report.timeline) {
    if (phases.at(-1)?.name !== point.phase) phases.push({ name: point.phase, from: point.index });
  }
  return phases.map((phase, at) => ({ ...phase, to: phases[at + 1]?.from ?? report.num_operators }));
}

function drawTimeline() {
  const { group, report } = state;
  const points = report.timeline;
  const peak = points.find((point) => point.index === report.peak_index);
  byId("peak-text").textContent = `Live bytes while each operator runs. Peak: ${formatBytes(report.peak)} at operator ` +
    `${report.peak_index} of ${report.num_operators}, ${peak.operator || "–"} in ${peak.module || "the step itself"} (${peak.phase}).`;
  const [plot, width] = canvas(byId("timeline"), 330, { tabindex: 0, role: "slider",
    "aria-label": "Operator of the step; arrow keys move", "aria-valuemin": 0, "aria-valuemax": report.num_operators - 1 });
  const others = byId("overlay").checked ? group.reports.filter((other) => other !== report) : [];
  const shown = [report, ...others];
  const box = { left: 62, right: width - 14, top: 26, bottom: 284 };
  const xMax = Math.max(...shown.map((r) => r.num_operators));
  const yMax = (width < 500 ? 1.5 : 1.16) * Math.max(peak.nbytes, ...others.map((r) => r.peak));
  const x = (index) => box.left + (index / xMax) * (box.right - box.left);
  const y = (bytes) => box.bottom - (bytes / yMax) * (box.bottom - box.top);
  phasesOf(report).forEach((phase, at) => {
    const wide = x(phase.to) - x(phase.from);
    plot.append(svg("rect", { class: `phase${at % 2 ? "" : " odd"}`, x: x(phase.from), y: box.top, width: wide, height: box.bottom - box.top }));
    const middle = x((phase.from + phase.to) / 2);
    const upright = wide > 7 * phase.name.length;
    if (upright || wide > 13) plot.append(svg("text", { class: "phase-name", "text-anchor": upright ? "middle" : "end",
      transform: upright ? `translate(${middle} ${box.top - 8})` : `translate(${middle + 4} ${box.top + 8}) rotate(-90)` }, phase.name));
  });
  plot.append(axes(linearTicks(0, xMax, width / 140).map((t) => [t, t]),
    linearTicks(0, yMax, 5).map((t) => [t, formatBytes(t)]), x, y, box, "operator"));
  for (const other of others) {
    const top = other.timeline.find((point) => point.index === other.peak_index);
    const [px, py] = [x(top.index), y(top.nbytes)];
    const words = `${modeLabel(group, other)} ${formatBytes(other.peak)}`;
    const free = py < y(peak.nbytes) - 26 || Math.abs(px - x(peak.index)) > 4 * (words.length + 12);
    plot.append(svg("path", { class: "ghost", d: path(other.timeline, x, y) }), free ? label(px, py - 6, words, "halo ghost-name") : "");
  }
  const last = points.at(-1);
  plot.append(svg("path", { class: "area", d: `${path(points, x, y)}V${y(0)}H${x(points[0].index)}Z` }),
    svg("path", { class: "curve", d: path(points, x, y) }),
    label(x(peak.index), y(peak.nbytes) - 10, `peak ${formatBytes(report.peak)}`, "halo title"),
    svg("circle", { class: "peak-mark", cx: x(peak.index), cy: y(peak.nbytes), r: 4.5 }));
  const line = svg("line", { y1: box.top, y2: box.bottom });
  const dot = svg("circle", { r: 3.5 });
  const cursor = svg("g", { class: "cursor", visibility: "hidden" }, line, dot);
  plot.append(cursor);

  function label(px, py, words, style) {
    const half = 3.5 * words.length;
    return svg("text", { class: style, x: Math.max(box.left + half, Math.min(px, box.right - half)), y: py, "text-anchor": "middle" }, words);
  }
  let at = points.indexOf(peak);
  const moveTo = (next, pointer) => {
    at = Math.max(0, Math.min(next, points.length - 1));
    const point = points[at];
    fill(line, { x1: x(point.index), x2: x(point.index) }, []);
    fill(dot, { cx: x(point.index), cy: y(point.nbytes) }, []);
    fill(cursor, { visibility: "visible" }, []);
    fill(plot, { "aria-valuenow": point.index,
      "aria-valuetext": `operator ${point.index}, ${point.phase}, ${point.operator}, ${point.module}, ${formatBytes(point.nbytes)}` }, []);
    const frame = plot.getBoundingClientRect();
    showTooltip(formatBytes(point.nbytes), [["operator", `${point.index} of ${report.num_operators}`], ["phase", point.phase],
      ["runs", point.operator], ["module", point.module || "the step itself"]],
      frame.left + x(point.index), pointer ?? frame.top + y(point.nbytes));
  };
  const hide = () => { hideTooltip(); fill(cursor, { visibility: "hidden" }, []); };
  const onPointer = (event) => {
    const frame = plot.getBoundingClientRect();
    const index = ((event.clientX - frame.left - box.left) / (box.right - box.left)) * xMax;
    let low = 0;
    for (let high = points.length - 1; low < high;) {
      const middle = (low + high + 1) >> 1;
      if (points[middle].index <= index) low = middle; else high = middle - 1;
    }
    const next = points[low + 1];
    moveTo(next && next.index - index < index - points[low].index ? low + 1 : low, event.clientY);
  };
  const page = Math.ceil(points.length / 20);
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page, Home: -Infinity, End: Infinity };
  fill(plot, { "aria-valuenow": last.index, onpointermove: onPointer, onpointerdown: onPointer, onpointerleave: hide, onblur: hide,
    onfocus: () => plot.matches(":focus-visible") && moveTo(at),
    onkeydown: (event) => {
      if (event.key === "Escape") hide();
      if (!(event.key in steps)) return;
      event.preventDefault();
      moveTo(at + steps[event.key]);
    } }, []);
}

// ---- treemap --------------------------------------------------------------------------------------------------------
/** Rectangles of areas in proportion to `bytes`, as square as can be (Bruls, Huizing, van Wijk 2000). */
function squarify(items, { x, y, w, h }) {
  const placed = [];
  const scale = (w * h) / sum(items.map((item) => item.bytes));
  let rest = items.filter((item) => item.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  while (rest.length && w > 0 && h > 0) {
    const side = Math.min(w, h);
    let count = 0;
    let area = 0;
    for (let worst = Infinity; count < rest.length; count++) {
      const wider = area + rest[count].bytes * scale;
      const ratio = Math.max((side ** 2 * rest[0].bytes * scale) / wider ** 2, wider ** 2 / (side ** 2 * rest[count].bytes * scale));
      if (ratio > worst) break;
      [worst, area] = [ratio, wider];
    }
    const thick = area / side;
    let along = 0;
    for (const item of rest.slice(0, count)) {
      const length = (item.bytes * scale) / thick;
      placed.push([item, w >= h ? { x, y: y + along, w: thick, h: length } : { x: x + along, y, w: length, h: thick }]);
      along += length;
    }
    if (w >= h) [x, w] = [x + thick, w - thick];
    else [y, h] = [y + thick, h - thick];
    rest = rest.slice(count);
  }
  return placed;
}

/** The tree category -> stage -> tensors, or the branch of it that is zoomed in. */
function branch(report, zoom) {
  const tree = (tensors, keys, way) => {
    if (!keys.length) return tensors.map((tensor) => ({ bytes: tensor.nbytes, tensor }));
    const parts = Map.groupBy(tensors, (tensor) => tensor[keys[0]]);
    return [...parts].map(([name, members]) => ({ name, way: [...way, name], bytes: sum(members.map((t) => t.nbytes)),
      children: tree(members, keys.slice(1), [...way, name]) }));
  };
  const keys = ["category", "stage"];
  const chosen = report.tensors.filter((tensor) => zoom.every((name, at) => tensor[keys[at]] === name));
  return tree(chosen, keys.slice(zoom.length), zoom);
}

const inkOn = (colour) => {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff";
};

function zoomTo(zoom) {
  const inside = document.activeElement?.closest("#treemap, #crumbs");
  state.zoom = zoom;
  hideTooltip();
  drawTreemap();
  if (inside) (byId("crumbs").querySelector("button:last-of-type") ?? byId("treemap").querySelector("[tabindex]"))?.focus();
}

function drawTreemap() {
  const { report, zoom } = state;
  const total = sum(report.tensors.map((tensor) => tensor.nbytes));
  const crumbs = zoom.length ? ["peak", ...zoom] : [];
  byId("crumbs").replaceChildren(...crumbs.flatMap((name, at) => at === zoom.length ? [html("span", {}, name)]
    : [html("button", { type: "button", onclick: () => zoomTo(zoom.slice(0, at)) }, at ? name : "← whole peak"), html("span", {}, "›")]));
  byId("legend").replaceChildren(...data.categories.filter(({ name }) => report.categories[name]).map(({ name, text: meaning, colour }) =>
    html("button", { type: "button", title: meaning, "aria-pressed": String(zoom[0] === name),
      onclick: () => zoomTo(zoom[0] === name ? [] : [name]) },
      html("span", { class: "swatch", style: `background:${colour}` }), name, html("b", {}, formatBytes(report.categories[name])))));
  const height = innerWidth < 640 ? 440 : 480;
  const [plot, width] = canvas(byId("treemap"), height, { role: "group", "aria-label": "Treemap of the peak" });
  const leaves = [];

  function write(words, rect, colour, style, dy) {
    const fitting = shorten(words, rect.w - 10, style === "title" ? 7.6 : 6.4);
    return fitting ? svg("text", { class: style, x: rect.x + 5, y: rect.y + dy, style: `fill:${colour}` }, fitting) : null;
  }
  function leaf(item, rect, parent) {
    if (rect.w < 0.5 || rect.h < 0.5) return;
    const { tensor } = item;
    const colour = colours[tensor.category];
    const ink = inkOn(colour);
    const size = rect.h > 30 ? formatBytes(tensor.nbytes) : null;
    parent.append(svg("rect", { class: "leaf", "data-leaf": leaves.push(tensor) - 1, x: rect.x, y: rect.y, width: rect.w, height: rect.h,
      rx: 2, style: `fill:${colour}` }));
    if (rect.h > 17 && rect.w > 44) parent.append(...[write(tensor.kind, rect, ink, "inside", 13.5),
      size && write(size, rect, ink, "inside", 28)].filter(Boolean));
  }
  function place(items, rect, parent) {
    for (const [item, spot] of squarify(items, rect)) {
      if (item.tensor) {
        leaf(item, spot, parent);
        continue;
      }
      const top = item.way.length === zoom.length + 1;
      const name = `${item.name}, ${formatBytes(item.bytes)}`;
      const group = svg("g", { class: top ? "group zoomable" : "group", "data-way": JSON.stringify(item.way),
        ...(top ? { tabindex: 0, role: "button", "aria-label": `${name}: zoom in` } : {}) });
      parent.append(group);
      const named = spot.w > 56 && spot.h > 42;
      const inner = { x: spot.x + 1.5, y: spot.y + (named ? 18 : 1.5), w: spot.w - 3, h: spot.h - (named ? 19.5 : 3) };
      if (named) group.append(svg("rect", { x: spot.x, y: spot.y, width: spot.w, height: 18, style: "fill:transparent" }),
        ...[write(name, spot, "", top ? "title" : "inside", 13)].filter(Boolean));
      place(item.children, inner.w > 0 && inner.h > 0 ? inner : spot, group);
    }
  }
  place(branch(report, zoom), { x: 0, y: 0, w: width, h: height }, plot);

  const describe = (tensor) => [["size", `${formatBytes(tensor.nbytes)}, ${formatShare(tensor.nbytes / total)} of the peak`],
    ["shape", tensor.shape.length ? tensor.shape.join(" × ") : ""], ["dtype", tensor.dtype], ["category", tensor.category],
    ["operator", tensor.operator], ["module", tensor.module], ["stage", tensor.stage], ["stream", tensor.stream],
    ["made in", tensor.phase]];
  const enter = (node) => {
    const way = node.closest(".zoomable")?.dataset.way;
    if (way) zoomTo(JSON.parse(way));
  };
  const show = (event) => {
    const tensor = leaves[event.target.dataset.leaf];
    const group = event.target.closest("[data-way]");
    if (tensor) showTooltip(tensor.kind, describe(tensor), event.clientX, event.clientY);
    else if (group) showTooltip(group.getAttribute("aria-label")?.replace(": zoom in", "") ?? "", [], event.clientX, event.clientY);
    else hideTooltip();
  };
  fill(plot, { onpointermove: show, onpointerdown: show, onpointerleave: hideTooltip, onclick: (event) => enter(event.target),
    onkeydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enter(event.target);
    } }, []);
}

// ---- tables ---------------------------------------------------------------------------------------------------------
function drawTables() {
  const { report } = state;
  byId("breakdown").replaceChildren(...["categories", "stages", "streams", "kinds"].map((grouping) => {
    const parts = Object.entries(report[grouping]).filter(([, bytes]) => bytes > 0).sort((a, b) => b[1] - a[1]);
    const most = parts.length ? parts[0][1] : 1;
    const whole = sum(parts.map(([, bytes]) => bytes));
    const name = { categories: "Category", stages: "Stage", streams: "Stream", kinds: "Kind" }[grouping];
    return html("div", { "data-table": grouping }, table(name, [["", false], ["size", true], ["share", true], ["", false]], parts.map(([part, bytes]) =>
      [part, formatBytes(bytes), formatShare(bytes / whole), html("td", { class: "share" },
        html("span", { class: "bar", style: `width:${(100 * bytes) / most}%;background:${grouping === "categories" ? colours[part] : ""}` }))])));
  }));
  byId("largest").replaceChildren(table(null, [["size", true], ["kind"], ["shape"], ["dtype"], ["category"], ["operator"], ["module"], ["stream"]],
    report.tensors.slice(0, 10).map((t) => [formatBytes(t.nbytes), t.kind, t.shape.join(" × ") || "–", t.dtype || "–", t.category,
      t.operator || "–", t.module || "–", t.stream || "–"])));
}

function drawReport() {
  hideTooltip();
  drawHead();
  drawTimeline();
  drawTreemap();
  drawTables();
}
