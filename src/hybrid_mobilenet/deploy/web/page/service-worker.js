// Keeps the page working without a network after its first load. What the server has comes first, so that a page
// exported again is seen at once; the copies kept here serve where it does not answer.

importScripts("files.js"); // FILES, written by the export: all files of this page

const CACHE = `page ${registration.scope}`;

/** Without these a browser allows no threads; a static server that cannot send them need not. */
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
