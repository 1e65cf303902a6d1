// A DHT of persistent nodes in one process on loopback, for scripts/dhtcost:  node nodes.js COUNT
// Prints {"event":"ready","port":…}, and then the bytes sent so far every second.
'use strict'
const DHT = require('hyperdht')

const say = (o) => process.stdout.write(JSON.stringify(o) + '\n')
let bytes = 0

function count (node) {
  for (const socket of [node.io.clientSocket, node.io.serverSocket]) {
    const send = socket.trySend.bind(socket)
    socket.trySend = (b, ...rest) => { bytes += b.byteLength; return send(b, ...rest) }
  }
}

async function main () {
  const host = '127.0.0.1'
  const port = 20000 + Math.floor(Math.random() * 10000)
  const first = DHT.bootstrapper(port, host, { host })
  await first.fullyBootstrapped()
  for (let i = 1; i < Number(process.argv[2]); i++) {
    const node = new DHT({ host, port: 0, bootstrap: [{ host, port }], ephemeral: false, firewalled: false })
    await node.fullyBootstrapped()
    count(node)
  }
  count(first)
  say({ event: 'ready', port, bytes })
  setInterval(() => say({ event: 'sent', bytes }), 1000)
}
main()
