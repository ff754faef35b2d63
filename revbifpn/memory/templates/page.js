// Puts the page together, and keeps it right when the window changes.
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
