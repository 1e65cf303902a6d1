// A blind relay that serves everybody.
//   node relay.js --bootstrap=host:port --host=address
// Prints {"event":"ready","key"} when announced, and {"event":"paired"} for each half of a connection that it joins.
'use strict'
const { Server } = require('blind-relay')
const { DHT, say, options, address } = require('./common')

async function main () {
  const o = options()
  const dht = new DHT({ bootstrap: [address(o.bootstrap)], host: o.host, ephemeral: false, firewalled: false })
  await dht.fullyBootstrapped()
  const relay = new Server({ createStream: (opts) => dht.createRawStream({ ...opts, framed: true }) })
  const server = dht.createServer((socket) => {
    socket.on('error', () => {})
    relay.accept(socket, { id: socket.remotePublicKey }).on('pair', () => say({ event: 'paired' })).on('error', () => {})
  })
  await server.listen(DHT.keyPair())
  say({ event: 'ready', key: server.publicKey.toString('hex') })
}
main()
