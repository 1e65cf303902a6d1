// An echo server.
//   node server.js --bootstrap=host:port [--seed=n] [--host=address] [--allow=key] [--relay=key]
// Prints {"event":"ready","key"} when announced, {"event":"connection","key","remote"} for each connection, and
// {"event":"end"} or {"event":"error","message"} when one is over. With --allow everybody else is refused.
'use strict'
const { say, options, start } = require('./common')

async function main () {
  const o = options()
  const { dht, keyPair } = await start(o)
  const firewall = (key) => Boolean(o.allow) && key.toString('hex') !== o.allow
  const server = dht.createServer({ firewall, relayThrough: o.relay ? Buffer.from(o.relay, 'hex') : null }, (socket) => {
    const { remoteHost, remotePort } = socket.rawStream
    say({ event: 'connection', key: socket.remotePublicKey.toString('hex'), remote: remoteHost + ':' + remotePort })
    socket.on('error', (e) => say({ event: 'error', message: e.code || e.message }))
    socket.on('close', () => say({ event: 'close' }))
    socket.on('end', () => say({ event: 'end' }))
    socket.pipe(socket)
  })
  await server.listen(keyPair)
  say({ event: 'ready', key: keyPair.publicKey.toString('hex') })
}
main()
