// Numbers as people read them. Every function takes null, for what is not known.

const UNKNOWN = "–";

/** 1234567 -> "1.23M"; three digits, more only below 1000. */
export function count(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNKNOWN;
  const size = Math.abs(value);
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.9995) return digits(value / unit) + suffix;
  }
  return size < 100 && !Number.isInteger(value) ? digits(value) : String(Math.round(value));
}

/** Like count, of something per second: small ones keep their decimals. */
export function rate(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value > 0 && value < 0.1) return value < 0.01 ? "<0.01" : value.toFixed(2);
  return Math.abs(value) < 100 ? String(Number(value.toFixed(1))) : count(value);
}

/** Nanoseconds -> [number, unit]. */
export function durationParts(ns) {
  if (ns === null || ns === undefined || Number.isNaN(ns)) return [UNKNOWN, ""];
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (ns >= unit * 0.9995) return [digits(ns / unit), name];
  }
  return [String(Math.round(ns)), "ns"];
}

/** Nanoseconds -> "1.25 ms". */
export function duration(ns) {
  const [number, unit] = durationParts(ns);
  return unit ? `${number} ${unit}` : number;
}

/** 0.256 -> "26 %". */
export function share(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNKNOWN;
  return `${value > 0 && value < 0.1 ? digits(value * 100, 2) : Math.round(value * 100)} %`;
}

/** Seconds -> "2 h 5 min". */
export function span(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [size, name] = units[first];
  const whole = Math.floor(seconds / size);
  if (first === units.length - 1) return `${whole} ${name}`;
  const [next, nextName] = units[first + 1];
  const rest = Math.floor((seconds - whole * size) / next);
  return rest ? `${whole} ${name} ${rest} ${nextName}` : `${whole} ${name}`;
}

/** Bytes -> "1.5 MiB". */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (n >= 1024 && place < units.length - 1) {
    n /= 1024;
    place += 1;
  }
  return `${place ? digits(n) : n} ${units[place]}`;
}

function digits(value, most = 3) {
  const size = Math.abs(value);
  const decimals = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return value.toFixed(Math.min(decimals, most - 1));
}
