// A DHT of persistent nodes in one process on loopback, for scripts/dhtcost:  node nodes.js COUNT
// Prints {"event":"ready","port":…} for each.
'use strict'
const DHT = require('hyperdht')

const ready = (port) => process.stdout.write(JSON.stringify({ event: 'ready', port }) + '\n')

async function main () {
  const host = '127.0.0.1'
  const port = 20000 + Math.floor(Math.random() * 10000)
  const first = DHT.bootstrapper(port, host, { host })
  await first.fullyBootstrapped()
  ready(port)
  for (let i = 1; i < Number(process.argv[2]); i++) {
    const node = new DHT({ host, port: 0, bootstrap: [{ host, port }], ephemeral: false, firewalled: false })
    await node.fullyBootstrapped()
    ready(node.address().port)
  }
}
main()
