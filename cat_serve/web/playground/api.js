// Requests to the server that the page came from: the key, problems as errors, and patience with a busy server.

const ATTEMPTS = 8;
const LONGEST_WAIT_S = 30;
const PASSES = new Set([429, 503]);

let key = "";

/** Keep an API key for later requests, in memory only. */
export function useKey(text) {
  key = text.trim();
}

export function hasKey() {
  return key !== "";
}

/** What the server said was wrong (RFC 9457). */
export class Problem extends Error {
  constructor(status, body, retryAfterS = null) {
    super(body.detail ?? body.title ?? `The server answered ${status}.`);
    this.status = status;
    this.code = body.code ?? "";
    this.hint = body.hint ?? "";
    this.suggestions = Array.isArray(body.suggestions) ? body.suggestions : [];
    this.requestId = body.request_id ?? "";
    this.retryAfterS = retryAfterS;
  }
}

/**
 * Fetch `path`. A full queue and a server that still loads are asked again after their Retry-After.
 *
 * `onWait` hears the seconds and the problem before each pause. Throws Problem, or AbortError.
 */
export async function ask(path, { signal, body, onWait } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await askOnce(path, signal, body);
    } catch (error) {
      const waits = error instanceof Problem && PASSES.has(error.status) && error.retryAfterS !== null;
      if (!waits || attempt === ATTEMPTS) throw error;
      const seconds = Math.min(Math.max(error.retryAfterS, 1), LONGEST_WAIT_S);
      onWait?.(seconds, error);
      await pause(seconds, signal);
    }
  }
}

async function askOnce(path, signal, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { signal, headers };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server cannot be reached.", hint: "is it still running?" });
  }
  if (answer.ok) return answer;
  throw new Problem(answer.status, await facts(answer), seconds(answer.headers.get("Retry-After")));
}

async function facts(answer) {
  try {
    return await answer.json();
  } catch {
    return {};
  }
}

function seconds(text) {
  return text !== null && /^\d+$/.test(text) ? Number(text) : null;
}

function pause(s, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(new DOMException("given up", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, 1000 * s);
    signal?.addEventListener("abort", leave, { once: true });
  });
}

/** Return the milliseconds of each stage in a Server-Timing header. */
export function timing(header) {
  const found = {};
  for (const [, name, ms] of (header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)) found[name] = Number(ms);
  return found;
}

/** Return a curl command for a request; a key is named, never shown. */
export function curl(path, file, body) {
  const address = new URL(path, document.baseURI).href.replaceAll("'", "%27");
  const parts = [`curl '${address}'`];
  if (key) parts.push('-H "Authorization: Bearer $API_KEY"');
  if (body !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(body).replaceAll("'", "\\u0027")}'`);
  }
  return [...parts, `-o ${file}`].join(" ");
}
