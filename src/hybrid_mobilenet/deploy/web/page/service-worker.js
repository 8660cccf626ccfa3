// Makes the page work offline after its first load. Responses of the server come first, so that a new export shows at
// once. The cache answers if the server does not.

importScripts("files.js"); // FILES: all files of this page, written by the export

const CACHE = `page ${registration.scope}`;

/** Browsers require these headers for threads. They are added here for static servers that do not send them. */
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

addEventListener("install", (event) => event.waitUntil(keepAll().then(() => skipWaiting())));
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith(registration.scope)) {
    event.respondWith(answer(event.request.url));
  }
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
}

async function answer(url) {
  const cache = await caches.open(CACHE);
  const response = await fetch(url, { cache: "no-cache" }).catch(() => cache.match(url, { ignoreSearch: true }));
  if (!response) return Response.error();
  if (response.ok && !response.redirected) await cache.put(url, response.clone());
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
