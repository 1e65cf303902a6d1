// One end of the lab's trials: does what it is told on stdin, one JSON object a line, and answers with one.
//   {"do":"join","bootstrap","relay"}                → {"event":"ready","key","ms"}
//   {"do":"serve"}                                   → {"event":"ready","key","ms"}
//   {"do":"dial","to","relay_host","timeout_ms","linger_ms"} → {"event":"open","path","remote","ms","message"}, {"event":"done",…}
//   {"do":"leave"}                                   → {"event":"left"}
// Keys are in hex.
'use strict'
const readline = require('readline')
const { DHT, say, address } = require('./common')

const NAT = ['unknown', 'open', 'consistent', 'random']
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
let dht = null
let server = null
let keyPair = null
let relayThrough = null

const orders = {
  async join (o) {
    const start = Date.now()
    dht = new DHT({ bootstrap: [address(o.bootstrap)] })
    await Promise.race([dht.fullyBootstrapped(), sleep(o.timeout_ms || 10000)])
    keyPair = DHT.keyPair()
    relayThrough = o.relay ? Buffer.from(o.relay, 'hex') : null
    say({ event: 'ready', key: keyPair.publicKey.toString('hex'), ms: Date.now() - start, nodes: dht.nodes.length })
  },
  async serve () {
    const start = Date.now()
    server = dht.createServer({ relayThrough }, (socket) => {
      socket.on('data', (b) => socket.write(b))
      socket.on('error', () => {})
      socket.on('end', () => socket.end())
    })
    await server.listen(keyPair)
    say({ event: 'ready', key: keyPair.publicKey.toString('hex'), ms: Date.now() - start })
  },
  async dial (o) {
    const nat = {}
    const start = Date.now()
    const socket = dht.connect(Buffer.from(o.to, 'hex'), {
      keyPair,
      relayThrough,
      holepunch: (remote, local) => {
        nat.local = NAT[local]
        nat.peer = NAT[remote]
        return true
      }
    })
    const remote = () => socket.rawStream ? socket.rawStream.remoteHost + ':' + socket.rawStream.remotePort : ''
    const received = () => socket.rawStream && socket.rawStream.bytesReceived > 0
    const opened = await new Promise((resolve) => {
      socket.on('open', () => resolve(null))
      socket.on('error', (e) => resolve(e.code || e.message))
      socket.on('close', () => resolve('CLOSED'))
      setTimeout(() => resolve('TIMEOUT'), o.timeout_ms)
    })
    // It says that it is open when the handshake is done, whether or not a byte of the other side ever arrives on the path.
    const first = remote()
    let echoed = false
    const echo = new Promise((resolve) => socket.once('data', () => { echoed = true; resolve() }))
    if (!opened) socket.write('q')
    const patience = Date.now() + 3000
    while (!opened && !received() && !echoed && !socket.destroyed && Date.now() < patience) await sleep(1)
    const ms = Date.now() - start
    if (opened || !(received() || echoed)) {
      socket.destroy()
      say({ event: 'open', ms, message: opened || 'nothing was received', ...nat })
      return
    }
    say({ event: 'open', ms, path: 'stream', remote: first, ...nat })
    const done = { event: 'done', ms: 0, ...nat }
    await Promise.race([echo.then(() => { done.echo_ms = Date.now() - start }), sleep(3000)])
    const until = Date.now() + o.linger_ms
    while (first.startsWith(o.relay_host + ':') && Date.now() < until) {
      if (remote() !== first) {
        done.direct_ms = Date.now() - start
        done.remote = remote()
        break
      }
      await sleep(5)
    }
    socket.destroy()
    say(done)
  },
  async leave () {
    if (dht) await dht.destroy({ force: true })
    dht = server = null
    say({ event: 'left', ms: 0 })
  }
}

let queue = Promise.resolve()
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const o = JSON.parse(line)
  queue = queue.then(() => orders[o.do](o)).catch((e) => say({ event: 'error', message: e.stack || e.message }))
}).on('close', () => process.exit(0))
