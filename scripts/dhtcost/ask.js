// A client of a DHT on loopback, for scripts/dhtcost:  node ask.js PORT KIND WINDOW WARM MS
// Asks with WINDOW requests or queries at a time, for WARM and MS milliseconds, and prints an event where the second time begins
// and ends, with what was done in it.
'use strict'
const DHT = require('hyperdht')
const crypto = require('crypto')

const [port, kind, window, warm, ms] = [process.argv[2], process.argv[3], ...process.argv.slice(4).map(Number)]

async function main () {
  const to = { host: '127.0.0.1', port: Number(port) }
  const node = new DHT({ host: to.host, port: 0, bootstrap: [to] })
  await node.fullyBootstrapped()
  let done = 0
  const ask = {
    ping: () => node.ping(to),
    find_node: () => node.findNode(crypto.randomBytes(32)).finished(),
    lookup: () => node.lookup(crypto.randomBytes(32)).finished()
  }[kind]
  for (let i = 0; i < window; i++) {
    ;(async () => {
      while (true) {
        await ask()
        done++
      }
    })().catch((err) => { throw err })
  }
  const count = () => ({ done, requests: node.stats.requests.total })
  const say = (event, c) => process.stdout.write(JSON.stringify({ event, ...c }) + '\n')
  let before
  setTimeout(() => {
    before = count()
    say('begin', {})
  }, warm)
  setTimeout(() => {
    const after = count()
    say('end', { done: after.done - before.done, requests: after.requests - before.requests })
    process.exit(0)
  }, warm + ms)
}
main()
