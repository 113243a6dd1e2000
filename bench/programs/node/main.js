// node: a JSON interface over documents in memory. The contract is that of bench/functions.
"use strict";
const crypto = require("crypto");
const http = require("http");

const text = process.env.MEDES_SEED;
const seed = text === undefined ? crypto.randomBytes(6).readUIntLE(0, 6) : Number(text);

// xorshift32: all the randomness that made-up data needs.
let state = seed % 0xfffffffb || 1;
function next() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
}

// A word, a common one more often than a rare one.
function word() {
  let rest = Math.floor(20000 ** (next() / 2 ** 32)) * 7919;
  let letters = "";
  for (; rest > 0; rest = Math.floor(rest / 26)) letters += String.fromCharCode(97 + (rest % 26));
  return letters;
}

const documents = new Map();
for (let id = 0; id < 6000; id++) {
  const body = Array.from({ length: 20 + (next() % 60) }, word).join(" ");
  documents.set(id, { id, title: word(), author: { name: word(), age: next() % 90 }, score: next() / 2 ** 32, body });
}

let served = 0;
function answer(n) {
  const found = [];
  for (let step = 0; step < 200; step++) {
    const document = documents.get((n * 31 + step * 97) % documents.size);
    if (document.score > 0.5) found.push({ title: document.title, words: document.body.split(" ").length });
  }
  found.sort((a, b) => b.words - a.words || (a.title < b.title ? -1 : 1));
  served++;
  return { function: "node", seed, served, n, result: { found: found.length, first: found[0] } };
}

const server = http.createServer((request, response) => {
  const reply = (status, body) => {
    const bytes = JSON.stringify(body);
    response.writeHead(status, { "Content-Type": "application/json", "Content-Length": bytes.length, Connection: "close" });
    response.end(bytes);
  };
  if (request.method === "GET" && request.url === "/ready") return reply(200, { ready: true });
  if (request.method !== "POST" || request.url !== "/") return reply(404, { error: "no such path" });
  let body = "";
  request.on("data", (chunk) => {
    body += chunk;
    if (body.length > 65536) request.destroy();
  });
  request.on("end", () => {
    let n;
    try {
      n = JSON.parse(body).n;
    } catch {
      n = undefined;
    }
    if (!Number.isInteger(n) || n < 0) return reply(400, { error: 'body is not {"n": integer}' });
    return reply(200, answer(n));
  });
});
server.listen(Number(process.env.PORT), "127.0.0.1");
