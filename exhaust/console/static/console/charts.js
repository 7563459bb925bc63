// Values on hover and by arrow keys, a period by dragging, and PNG files.
// Without this script each page shows the drawing that the server made.

const script = document.getElementById("charts-script");
const countFormat = new Intl.NumberFormat(numberLanguage);
const axisFormat = new Intl.NumberFormat(numberLanguage, { notation: "compact" });
const dayFormat = makeDayFormat({ day: "numeric", month: "short" });
const fullDayFormat = makeDayFormat({ day: "numeric", month: "short", year: "numeric" });
const DAY = 86400;
const HEIGHT = 260;
const SECOND_STEPS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, DAY, 7 * DAY, 28 * DAY];

function makeDayFormat(parts) {
  return new Intl.DateTimeFormat(numberLanguage, { ...parts, timeZone: "UTC" });
}

function formatTick(seconds) {
  return seconds ? formatDuration(seconds * 1000) : "0";
}

function getColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function drawPlot(place) {
  const data = JSON.parse(document.getElementById(place.dataset.plot).textContent);
  const isTime = data.kind === "lines";
  const days = data.days.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000);
  const formatValue = (value) => isTime ? formatDuration(value * 1000) : countFormat.format(value);
  const lines = data.series.map((each, index) => ({ ...each, color: `s${index % 6}` }));
  if (data.before) lines.push({ name: script.dataset.before, values: data.before, color: "muted" });
  const drawing = place.parentElement.querySelector(".drawing");
  drawing.hidden = true;
  place.hidden = false;

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  place.tabIndex = 0;
  for (const [name, value] of [
    ["role", "slider"], ["aria-label", place.dataset.label], ["aria-valuemin", 0],
    ["aria-valuemax", days.length - 1],
  ]) place.setAttribute(name, value);
  let current = days.length - 1;
  setValueText();

  function describeDay(index) {
    return lines.filter((line) => line.values[index] !== null)
      .map((line) => `${line.name} ${formatValue(line.values[index])}`);
  }

  function setValueText() {
    place.setAttribute("aria-valuenow", current);
    place.setAttribute("aria-valuetext", [fullDayFormat.format(days[current] * 1000), ...describeDay(current)].join(", "));
  }

  function showTip(plot) {
    const index = plot.cursor.idx;
    tip.hidden = index === null || index === undefined || plot.cursor.left < 0;
    if (tip.hidden) return;
    current = index;
    setValueText();
    const heading = document.createElement("strong");
    heading.textContent = fullDayFormat.format(days[index] * 1000);
    const rows = describeDay(index).map((text) => {
      const row = document.createElement("div");
      row.textContent = text;
      return row;
    });
    tip.replaceChildren(heading, ...rows);
    const left = plot.valToPos(days[index], "x");
    const isRight = left > plot.over.clientWidth / 2;
    tip.style.left = isRight ? "auto" : `${left + 12}px`;
    tip.style.right = isRight ? `${plot.over.clientWidth - left + 12}px` : "auto";
  }

  function selectDays(plot) {
    const { left, width } = plot.select;
    if (width < 5) return;
    const from = plot.posToVal(left, "x");
    const to = plot.posToVal(left + width, "x");
    const chosen = data.days.filter((_, index) => days[index] + DAY / 2 > from && days[index] - DAY / 2 < to);
    if (!chosen.length) return;
    const address = new URL(location.href);
    address.searchParams.delete("preset");
    address.searchParams.set("startDate", chosen[0]);
    address.searchParams.set("endDate", chosen.at(-1));
    location.assign(address);
  }

  // columns lie on one another: the first series is drawn last, in front of the sums behind it
  function stack() {
    let sums = days.map(() => 0);
    return data.series.map((each) => (sums = sums.map((sum, index) => sum + each.values[index]))).reverse();
  }

  const bars = uPlot.paths.bars({ size: [0.76, 60] });
  function makeSeries(line, index) {
    if (isTime) return { label: line.name, stroke: () => getColor(line.color), width: 2, points: { show: true, size: 5, fill: () => getColor(line.color) } };
    return { label: line.name, paths: bars, fill: () => getColor(line.color), stroke: () => getColor(line.color), width: 0, points: { show: false } };
  }
  const series = isTime ? data.series.map((_, index) => makeSeries(lines[index]))
    : data.series.map((_, index) => makeSeries(lines[index])).reverse();
  const values = isTime ? data.series.map((each) => each.values) : stack();
  if (data.before) {
    series.push({ label: script.dataset.before, stroke: () => getColor("text"), width: 2, dash: [6, 4], points: { show: false } });
    values.push(data.before);
  }
  const axis = {
    stroke: () => getColor("muted"), grid: { stroke: () => getColor("line"), width: 1 }, ticks: { show: false },
    font: "13px system-ui, sans-serif",
  };
  const plot = new uPlot({
    width: place.clientWidth, height: HEIGHT, padding: [12, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
    scales: {
      x: { time: false, range: () => [days[0] - DAY / 2, days.at(-1) + DAY / 2] },
      y: { range: (_, __, high) => [0, Math.max(high || 0, 1) * 1.05] },
    },
    axes: [
      { ...axis, size: 30, grid: { show: false }, splits: (u) => {
          const every = Math.ceil(days.length / Math.max(1, Math.floor(u.width / 90)));
          return days.filter((_, index) => index % every === 0);
        }, values: (_, splits) => splits.map((each) => dayFormat.format(each * 1000)) },
      { ...axis, size: isTime ? 68 : 48, incrs: isTime ? SECOND_STEPS : undefined, space: 40,
        values: (_, splits) => splits.map((each) => !isTime ? (Number.isInteger(each) ? axisFormat.format(each) : "") : formatTick(each)) },
    ],
    series: [{}, ...series],
    hooks: { setCursor: [showTip], setSelect: [selectDays] },
  }, [days, ...values], place);
  plot.over.append(tip);

  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    const to = { Home: 0, End: days.length - 1 }[event.key] ?? (step && Math.min(days.length - 1, Math.max(0, current + step)));
    if (to === undefined) return;
    event.preventDefault();
    plot.setCursor({ left: plot.valToPos(days[to], "x"), top: 10 });
  });
  place.addEventListener("blur", () => { tip.hidden = true; });
  new ResizeObserver(() => {
    if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false));
  return plot;
}

// The drawing of the server as an image: classes mean nothing outside this page.
async function rasterize(drawing) {
  const copy = drawing.cloneNode(true);
  const parts = [drawing, ...drawing.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((part, index) => {
    const style = getComputedStyle(parts[index]);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family"]) {
      part.setAttribute(name, style.getPropertyValue(name));
    }
  });
  const { width, height } = drawing.viewBox.baseVal;
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", 2 * width);
  copy.setAttribute("height", 2 * height);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  await image.decode();
  return image;
}

async function savePng(card) {
  const plot = plots.get(card);
  const picture = plot ? plot.ctx.canvas : await rasterize(card.querySelector("svg.chart"));
  const width = Math.max(picture.width, 960);
  const legend = [...card.querySelectorAll(".legend li")];
  const head = legend.length ? 120 : 84;
  const canvas = document.createElement("canvas");
  canvas.width = width + 48;
  canvas.height = picture.height * (width / picture.width) + head + 24;
  const context = canvas.getContext("2d");
  context.fillStyle = getColor("surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = getColor("text");
  context.font = "600 28px system-ui, sans-serif";
  context.fillText(card.querySelector("h2").textContent, 24, 42);
  context.fillStyle = getColor("muted");
  context.font = "20px system-ui, sans-serif";
  context.fillText(card.querySelector(".hint").textContent, 24, 72, width);
  let x = 24;
  for (const entry of legend) {
    const swatch = entry.querySelector(".swatch");
    context.fillStyle = getComputedStyle(swatch).backgroundColor;
    if (!swatch.matches(".before")) context.fillRect(x, 92, 18, 18);
    else for (const dash of [0, 11]) { context.fillStyle = getColor("text"); context.fillRect(x + dash, 100, 7, 3); }
    context.fillStyle = getColor("text");
    context.fillText(entry.textContent, x + 26, 108);
    x += 56 + context.measureText(entry.textContent).width;
  }
  context.drawImage(picture, 24, head, width, picture.height * (width / picture.width));
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${card.dataset.name}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

const plots = new Map();
for (const place of document.querySelectorAll("[data-plot]")) {
  plots.set(place.closest(".chart-card"), drawPlot(place));
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-png]");
  if (button) savePng(button.closest(".chart-card"));
});
