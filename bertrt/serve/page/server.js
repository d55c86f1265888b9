// The server, and the API key, which is kept here and nowhere else.

let key = "";

export const hasKey = () => key !== "";

export function useKey(text) {
  key = text;
}

// Why the server did not answer, in its own words.
export class Told extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, body) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, cache: "no-store", signal: AbortSignal.timeout(60000) };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(path, options);
  let content = null;
  try {
    content = await response.json();
  } catch { /* Not JSON: a proxy's page, say. */ }
  if (!response.ok || content === null) {
    throw new Told(response.status, content?.error ?? `the answer is ${response.status} ${response.statusText}`);
  }
  return content;
}
