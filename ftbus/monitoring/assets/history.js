// What two snapshots say of the time between them, for as long as the page remembers.

const SAMPLES_MAX = 900;
const RATES = [
  "emitted", "posted", "delivered", "handled", "failed", "dropped", "rejected",
];
export const KINDS = ["emit", "wait", "handler", "encode"];
export const PERCENTILES = [50, 90, 99, 99.9];

/** The samples of one process: newest last. A restart, or a reset, begins anew. */
export class History {
  constructor() {
    this.samples = [];
    this.last = null;
  }

  /** Take a message of the server in; return whether there is a new sample. */
  add(message) {
    const before = this.last;
    this.last = message;
    const restarted = before && (
      message.process.pid !== before.process.pid ||
      message.stats.uptime_s < before.stats.uptime_s
    );
    if (restarted) this.samples = [];
    if (!before || restarted) return false;
    const seconds = message.stats.uptime_s - before.stats.uptime_s;
    if (seconds <= 0) return false; // the same snapshot
    this.samples.push(compare(before, message, seconds));
    if (this.samples.length > SAMPLES_MAX) this.samples.shift();
    return true;
  }

  /** Note that nothing is known of a time. */
  addGap() {
    if (this.samples.length && !this.samples.at(-1).isGap) {
      this.samples.push({ at: Date.now() / 1000, isGap: true });
    }
    this.last = null;
  }

  /** The samples of the last seconds. */
  recent(seconds) {
    const from = (this.samples.at(-1)?.at ?? 0) - seconds;
    return this.samples.filter((sample) => sample.at >= from);
  }
}

function compare(before, message, seconds) {
  const then = before.stats;
  const now = message.stats;
  const sample = { at: message.time_s, seconds, pending: now.pending };
  for (const name of RATES) sample[name] = growth(then[name], now[name]) / seconds;
  sample.cores = growth(before.process.cpu_s, message.process.cpu_s) / seconds;
  sample.workers = now.workers.map((worker, index) =>
    Math.min(1, growth(then.workers[index]?.busy_ns ?? 0, worker.busy_ns) / 1e9 / seconds));
  sample.times = {};
  for (const kind of KINDS) sample.times[kind] = percentiles(then.times[kind], now.times[kind]);
  sample.handlers = rowsOf(then.handlers, now.handlers, (row) => row.serial, (old, row) => {
    const calls = growth(old?.calls ?? 0, row.calls);
    const timed = growth(old?.time.count ?? 0, row.time.count);
    const mean = timed ? growth(old?.time.sum_ns ?? 0, row.time.sum_ns) / timed : row.time.mean_ns;
    return { calls: calls / seconds, mean, load: (calls * mean) / 1e9 / seconds };
  });
  sample.topics = rowsOf(then.topics, now.topics, (row) => row.key, (old, row) =>
    Object.fromEntries(RATES.map((name) =>
      [name, growth(old?.[name] ?? 0, row[name]) / seconds])));
  return sample;
}

/** What a counter grew by; after reset_stats() it counts from nothing. */
function growth(then, now) {
  return now >= then ? now - then : now;
}

function rowsOf(then, now, name, measure) {
  const old = new Map(then.map((row) => [name(row), row]));
  return new Map(now.map((row) => [name(row), measure(old.get(name(row)), row)]));
}

/** Percentiles of what came to a histogram; nulls if that is nothing. */
export function percentiles(then, now) {
  const before = new Map(now.count >= then.count ? then.buckets : []);
  let total = 0;
  const grown = [];
  for (const [upper, n] of now.buckets) {
    const more = n - (before.get(upper) ?? 0);
    if (more > 0) {
      total += more;
      grown.push([upper, total]);
    }
  }
  return PERCENTILES.map((q) => {
    const rank = Math.max(1, Math.ceil((total * q) / 100));
    return grown.find(([, sum]) => sum >= rank)?.[0] ?? null;
  });
}
