// What all of the page uses: elements, which get texts as text and as nothing else, and numbers.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function draw(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function number(value) {
  if (value === 0) return "0";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${Number((value / (unit === "k" ? 1e3 : size)).toPrecision(3))}${unit}`;
  }
  return String(value >= 100 ? Math.round(value) : Number(value.toPrecision(value < 1 ? 2 : 3)));
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

export function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([size]) => seconds >= size);
  if (at < 0) return "0 s";
  return parts.slice(at, at + 2).map(([size, unit], i) => {
    const whole = i === 0 ? Math.floor(seconds / size) : Math.floor((seconds % parts[at][0]) / size);
    return `${whole} ${unit}`;
  }).join(" ");
}

export const bytes = (value) => value >= 1 << 20 ? `${number(value / (1 << 20))} MB` : `${number(value / 1024)} KB`;
