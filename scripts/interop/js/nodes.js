// A DHT: a bootstrap node and more persistent nodes, each on an address of its own.
//   node nodes.js --addresses=192.88.99.10:49737,192.88.99.11:49737,…
// Prints {"event":"ready"} when all are there.
'use strict'
const { DHT, say, options, address } = require('./common')

async function main () {
  const [first, ...rest] = options().addresses.split(',').map(address)
  const boot = DHT.bootstrapper(first.port, first.host, { host: first.host })
  await boot.fullyBootstrapped()
  for (const { host, port } of rest) {
    const node = new DHT({ host, port, bootstrap: [first], ephemeral: false, firewalled: false })
    await node.fullyBootstrapped()
  }
  say({ event: 'ready' })
}
main()
