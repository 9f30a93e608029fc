// A counter over HTTP in Node.js, with timers and memory that must survive.
// GET /      {"count", "client", "boot", "pid", "mem_ok"}
// MEM_MB     megabytes to hold (16)
'use strict';

const crypto = require('crypto');
const http = require('http');

const boot = crypto.randomBytes(8).toString('hex');
const memory = crypto.randomBytes(Number(process.env.MEM_MB || 16) << 20);
const digest = crypto.createHash('sha256').update(memory).digest('hex');
let count = 0;
let ticks = 0;
setInterval(() => { ticks += 1; }, 50);

const server = http.createServer((request, response) => {
  count += 1;
  const { remoteAddress, remotePort } = request.socket;
  const address = remoteAddress.replace(/^::ffff:/, '');
  const client = address.includes(':') ? `[${address}]:${remotePort}` : `${address}:${remotePort}`;
  const mem_ok = crypto.createHash('sha256').update(memory).digest('hex') === digest;
  console.log(`request ${count} ${client}`);
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify({ count, client, boot, pid: process.pid, mem_ok, ticks }) + '\n');
});
// Longer than any test: idle connections are the tests' to close.
server.keepAliveTimeout = 3600 * 1000;
server.listen(Number(process.env.PORT || 8080), '::', () => console.log('listening'));
process.on('SIGTERM', () => { console.log('terminated'); process.exit(0); });
