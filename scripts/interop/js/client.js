// Connects, sends bytes, and expects the same back.
//   node client.js --bootstrap=host:port --to=key --bytes=n [--seed=n] [--host=address] [--relay=key] [--hold=ms]
// With --hold it sends nothing and only watches the open connection for that long. Prints {"event":"key","key"},
// {"event":"open","key","remote","ms"}, and at the end {"event":"done","sent","received","same"}, or
// {"event":"error","message"}. The exit status is 0 only after "done" with "same".
'use strict'
const { crypto, say, options, start, random } = require('./common')

async function main () {
  const o = options()
  const bytes = Number(o.bytes || 0)
  const { dht, keyPair } = await start(o)
  say({ event: 'key', key: keyPair.publicKey.toString('hex') })
  const begin = Date.now()
  const socket = dht.connect(Buffer.from(o.to, 'hex'), { keyPair, relayThrough: o.relay ? Buffer.from(o.relay, 'hex') : null })
  let finished = false
  const finish = (event, code) => {
    if (finished) return
    finished = true
    say(event)
    process.exit(code)
  }
  socket.on('error', (e) => finish({ event: 'error', message: e.code || e.message }, 1))
  socket.on('close', () => finish({ event: 'error', message: 'closed' }, 1))
  socket.on('open', () => {
    const { remoteHost, remotePort } = socket.rawStream
    const remote = remoteHost + ':' + remotePort
    say({ event: 'open', key: socket.remotePublicKey.toString('hex'), remote, ms: Date.now() - begin })
    if (o.hold) setTimeout(() => finish({ event: 'done', sent: 0, received: 0, same: true }, 0), Number(o.hold))
  })
  if (o.hold) return
  const there = crypto.createHash('sha256')
  const back = crypto.createHash('sha256')
  let received = 0
  socket.on('data', (b) => { received += b.length; back.update(b) })
  socket.on('end', () => {
    const same = received === bytes && there.digest('hex') === back.digest('hex')
    finish({ event: 'done', sent: bytes, received, same }, same ? 0 : 1)
  })
  const next = random(1)
  for (let sent = 0; sent < bytes;) {
    const b = next(Math.min(65536, bytes - sent))
    sent += b.length
    there.update(b)
    if (!socket.write(b)) await new Promise((resolve) => socket.once('drain', resolve))
  }
  socket.end()
}
main()
