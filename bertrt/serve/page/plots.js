// Four plots of the last minutes.

import { $, draw, duration, make, milliseconds, number, say } from "./basics.js";

const PLOTS = [
  { title: "Latency", unit: milliseconds, lines: [["p50", "median"], ["p95", "95%"], ["p99", "99%"]] },
  { title: "Requests a second", unit: number, area: true, lines: [["requests", "all"], ["failed", "refused"]] },
  { title: "Tokens a second", unit: number, area: true, lines: [["tokens", "tokens"]] },
  { title: "Where the time goes, mean", unit: milliseconds, lines: [["execute", "execution"], ["queue", "in the queue"]] },
];

// The greatest value of an axis: a round one.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

class Plot {
  constructor(about) {
    this.about = about;
    this.cursor = null;
    this.svg = draw("svg", { role: "img" });
    this.legend = make("div", { className: "legend" });
    this.names = about.lines.map((_, i) => this.legend.appendChild(make("span", { className: `s${i}` })));
    this.figure = make("figure", { className: "plot" }, make("h3", { textContent: about.title }), this.legend, this.svg);
    this.svg.addEventListener("pointermove", (event) => {
      this.cursor = event.offsetX;
      this.paint();
    });
    this.svg.addEventListener("pointerleave", () => {
      this.cursor = null;
      this.paint();
    });
    $("plots").append(this.figure);
  }

  show(stats) {
    this.stats = stats;
    this.paint();
  }

  paint() {
    if (!this.stats) return;
    const { about, svg } = this;
    const { span, step, uptime } = this.stats;
    // A server that began a moment ago has nothing to show of before.
    const count = Math.min(span, Math.max(120, 60 * Math.ceil(uptime / 60))) / step;
    const series = Object.fromEntries(
      Object.entries(this.stats.series).map(([name, points]) => [name, points.slice(-count)]));
    const width = svg.clientWidth || 400;
    const height = svg.clientHeight || 150;
    const [left, right, top, bottom] = [52, width - 6, 8, height - 20];
    const x = (i) => left + (right - left) * i / (count - 1);
    const values = about.lines.flatMap(([name]) => series[name]).filter((value) => value !== null);
    const most = ceiling(Math.max(...values, about.unit === milliseconds ? 1 : 0.1));
    const y = (value) => bottom - (bottom - top) * value / most;
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const at = y(share * most);
      parts.push(draw("line", { class: "grid-line", x1: left, x2: right, y1: at, y2: at }));
      parts.push(draw("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, about.unit(share * most)));
    }
    const minutes = count * step / 60;
    for (const [i, text, anchor] of [[0, `${minutes} min ago`, "start"], [(count - 1) / 2, number(minutes / 2), "middle"], [count - 1, "now", "end"]]) {
      parts.push(draw("text", { x: x(i), y: height - 4, "text-anchor": anchor }, text));
    }
    about.lines.forEach(([name], index) => {
      const points = series[name];
      const path = line(points, x, y);
      if (about.area && index === 0) {
        parts.push(draw("path", { class: "area", d: `${path}L${x(count - 1)} ${bottom}L${x(0)} ${bottom}Z` }));
      }
      parts.push(draw("path", { class: `line s${index}`, d: path }));
    });
    let at = count - 1;
    if (this.cursor !== null) {
      at = Math.max(0, Math.min(count - 1, Math.round((this.cursor - left) / (right - left) * (count - 1))));
      parts.push(draw("line", { class: "cursor", x1: x(at), x2: x(at), y1: top, y2: bottom }));
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...parts);
    const ago = (count - 1 - at) * step;
    about.lines.forEach(([name, title], index) => {
      const points = series[name];
      const value = this.cursor === null ? points.slice(-2).findLast((each) => each !== null) ?? null : points[at];
      const when = this.cursor !== null && index === 0 ? ` (${duration(ago)} ago)` : "";
      say(this.names[index], `${title} ${value === null ? "–" : about.unit(value)}${when}`);
    });
    svg.setAttribute("aria-label", `${about.title}, last ${minutes} minutes: ${this.names.map((each) => each.textContent).join(", ")}; the axis ends at ${about.unit(most)}`);
  }
}

// A path through what there is; a point alone is a dot.
function line(points, x, y) {
  let path = "";
  points.forEach((value, i) => {
    if (value === null) return;
    const place = `${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    const follows = i > 0 && points[i - 1] !== null;
    path += `${follows ? "L" : "M"}${place}`;
    if (!follows && (i + 1 === points.length || points[i + 1] === null)) path += `L${place}`;
  });
  return path;
}

const plots = PLOTS.map((about) => new Plot(about));
export const showPlots = (stats) => plots.forEach((plot) => plot.show(stats));
addEventListener("resize", () => plots.forEach((plot) => plot.paint()));
