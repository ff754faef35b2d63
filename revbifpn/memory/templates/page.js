"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // ---- text -------------------------------------------------------------------------------------------------------
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

  // ---- elements ---------------------------------------------------------------------------------------------------
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

  // ---- data -------------------------------------------------------------------------------------------------------
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

  // ---- scales -----------------------------------------------------------------------------------------------------
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

  // ---- head -------------------------------------------------------------------------------------------------------
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

  // ---- timeline ---------------------------------------------------------------------------------------------------
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

  // ---- treemap ----------------------------------------------------------------------------------------------------
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

  // ---- tables -----------------------------------------------------------------------------------------------------
  function table(caption, heads, rows) {
    const cell = (tag, value, numeric) => html(tag, { class: numeric ? "number" : null, scope: tag === "th" ? "col" : null }, value);
    return html("table", {}, caption && html("caption", {}, caption),
      html("thead", {}, html("tr", {}, ...heads.map(([head, numeric]) => cell("th", head, numeric)))),
      html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map((value, at) =>
        value instanceof HTMLTableCellElement ? value : cell("td", value, heads[at][1]))))));
  }

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

  // ---- comparison -------------------------------------------------------------------------------------------------
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
  const columns = [
    ["model", "name"], ["family", "family"], ["mode", "mode"], ["method", "method"],
    ["image", "image", formatImage, (row) => (row.image ? row.image[0] * row.image[1] : null)],
    ["batch", "batch", String], ["parameters", "params", formatCount, (row) => row.params || null], ["MACs", "macs", formatCount],
    ["memory per sample", "per_sample", formatBytes], ["whole step", "peak", formatBytes], [data.quality, "top1", (value) => value.toFixed(1)],
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
    const shown = rows.filter((row) => row[key] !== null && row.per_sample > 0 && (!log || row[key] > 0));
    if (!shown.length) {
      byId(id).replaceChildren(html("p", { class: "quiet" }, `No figures for ${name}.`));
      return;
    }
    const [plot, width] = canvas(byId(id), 380, { role: "group", "aria-label": `Memory per sample against ${name}` });
    const box = { left: 62, right: width - 16, top: 12, bottom: 334 };
    const scale = (values, isLog, low, high) => {
      const [f, g] = isLog ? [Math.log, Math.exp] : [(v) => v, (v) => v];
      const [least, most] = [f(Math.min(...values)), f(Math.max(...values))];
      const pad = 0.08 * (most - least) || (isLog ? 0.5 : 1);
      const at = (value) => low + ((f(value) - least + pad) / (most - least + 2 * pad)) * (high - low);
      return [at, g(least - pad), g(most + pad)];
    };
    const [x, xLow, xHigh] = scale(shown.map((row) => row[key]), log, box.left, box.right);
    const [y, yLow, yHigh] = scale(shown.map((row) => row.per_sample), true, box.bottom, box.top);
    const xTicks = log ? logTicks(xLow, xHigh, width - 80, 110) : linearTicks(xLow, xHigh, width / 110);
    plot.append(axes(xTicks.map((t) => [t, log ? formatCount(t) : t]), logTicks(yLow, yHigh, 320, 60).map((t) => [t, formatBytes(t)]), x, y, box, name));
    const spots = shown.map((row) => [row, x(row[key]), y(row.per_sample)]);
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
      const facts = [["mode", row.mode], ["method", row.method], ["per sample", formatBytes(row.per_sample)],
        ["whole step", row.peak === null ? "" : formatBytes(row.peak)], ["MACs", row.macs === null ? "" : formatCount(row.macs)],
        [data.quality, row.top1 === null ? "" : String(row.top1)], ["parameters", row.params ? formatCount(row.params) : ""],
        ["batch, image", `${row.batch}, ${formatImage(row.image)}`]];
      const scaling = row.mode === modes[0] && !printed(row) ? " scale(1.4)" : ""; // shows behind an equal point of another mode
      const node = svg("g", { transform: `translate(${px} ${py})${scaling}`, tabindex: 0, role: "img", "data-name": row.name, "data-mode": row.mode,
        "aria-label": [row.name, ...facts.filter(([, v]) => v).map((fact) => fact.join(" "))].join(", "),
        onpointerleave: hideTooltip, onblur: hideTooltip }, marker(shapeOf(row), familyColour(row), printed(row)));
      const show = () => showAt(node, row.name, facts);
      plot.append(fill(node, { onpointerenter: show, onfocus: show }, []));
    }
  }

  function drawComparison() {
    const sample = (node, name) => html("span", {}, svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14" }, node), name);
    byId("scatter-legend").replaceChildren(
      ...families.map((family) => sample(marker(shapes[0], familyColour({ family })), family)),
      ...modes.map((mode) => sample(marker(shapeOf({ mode })), mode || "one mode")),
      rows.some(printed) ? sample(marker(shapes[0], null, true), data.printed) : "");
    drawScatter("scatter-macs", "macs", "MACs of one sample's forward pass", true);
    drawScatter("scatter-top1", "top1", data.quality, false);
  }

  // ---- page -------------------------------------------------------------------------------------------------------
  function drawReport() {
    hideTooltip();
    drawHead();
    drawTimeline();
    drawTreemap();
    drawTables();
  }

  function drawCharts() {
    if (reports.length) drawTimeline();
    if (reports.length) drawTreemap();
    if (rows.length) drawComparison();
  }

  byId("environment").textContent = data.environment;
  byId("report").hidden = !reports.length;
  byId("comparison").hidden = !rows.length;
  const select = byId("model");
  select.replaceChildren(...groups.map((group, at) => html("option", { value: at }, groupLabel(group))));
  byId("model-field").hidden = groups.length < 2;
  select.addEventListener("change", () => {
    const group = groups[select.value];
    choose(group, group.reports.find((report) => report.mode === state.report.mode) ?? group.reports[0]);
  });
  byId("overlay").addEventListener("change", drawTimeline);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.zoom.length) zoomTo(state.zoom.slice(0, -1));
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== (width = innerWidth)) drawCharts();
  });
  if (reports.length) drawReport();
  if (rows.length) {
    drawComparison();
    drawRows();
  }
})();
