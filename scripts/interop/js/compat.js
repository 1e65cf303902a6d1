// A DHT, or a client of one, that does what it is told on stdin, one JSON object a line:
//   node compat.js --nodes=4                      be a network of four members on loopback
//   node compat.js --bootstrap=127.0.0.1:49737    be a client
// Prints {"event":"ready","addresses":[…]}, and for each order {"event":"done",…} or {"event":"error","message":…}.
'use strict'
const readline = require('readline')
const { DHT, say, options, address } = require('./common')
const cenc = require('compact-encoding')
const sodium = require('sodium-universal')
const messages = require('hyperdht/lib/messages')
const Persistent = require('hyperdht/lib/persistent')

const hex = (b) => b ? Buffer.from(b).toString('hex') : null
const bin = (s) => Buffer.from(s, 'hex')
const pair = (n) => DHT.keyPair(Buffer.alloc(32, n))
const text = (a) => a.host + ':' + a.port

const hash = (b) => {
  const out = Buffer.alloc(32)
  sodium.crypto_generichash(out, b)
  return out
}
const answer = (m) => ({
  code: m.error, value: m.value ? hex(m.value) : '', closer: !!m.closerNodes, token: !!m.token
})

const orders = {
  async ping (dht, o) {
    const r = await dht.ping(address(o.to))
    return { value: text(r.to) }
  },
  // One request, as it is: what does the node answer? With token: a good one.
  async request (dht, o) {
    const to = address(o.to)
    const target = o.target ? bin(o.target) : null
    const send = (internal, command, token, value) => dht._requestToPromise(
      dht.io.createRequest({ id: null, ...to }, token, internal, command, target, value, null), { retry: false })
    let token = o.badToken ? Buffer.alloc(32, 1) : null
    if (o.token) token = (await send(false, 2, null, Buffer.alloc(40))).token
    return answer(await send(!!o.internal, o.command, token, o.value === undefined ? null : bin(o.value)))
  },
  // MUTABLE_PUT to one node.
  async mutablePutTo (dht, o) {
    const keyPair = pair(o.key)
    const value = bin(o.value)
    const target = hash(keyPair.publicKey)
    const { token } = await dht.request({ command: 2, target, value: Buffer.alloc(40) }, address(o.to))
    return answer(await dht.request({
      token: o.badToken ? Buffer.alloc(32, 1) : token,
      command: 6,
      target,
      value: cenc.encode(messages.mutablePutRequest, {
        publicKey: keyPair.publicKey, seq: o.seq, value, signature: Persistent.signMutable(o.seq, value, keyPair)
      })
    }, address(o.to)))
  },
  async delayedPing (dht, o) {
    const began = Date.now()
    await dht.delayedPing(address(o.to), o.ms)
    return { count: Date.now() - began }
  },
  async immutablePut (dht, o) {
    const r = await dht.immutablePut(bin(o.value))
    return { value: hex(r.hash), count: r.closestNodes.length }
  },
  async immutableGet (dht, o) {
    const r = await dht.immutableGet(bin(o.target))
    return { value: r && hex(r.value) }
  },
  async mutablePut (dht, o) {
    const r = await dht.mutablePut(pair(o.key), bin(o.value), { seq: o.seq })
    return { value: hex(r.publicKey), count: r.closestNodes.length }
  },
  async mutableGet (dht, o) {
    const r = await dht.mutableGet(bin(o.target), { seq: o.seq })
    return { value: r && hex(r.value), seq: r ? r.seq : 0 }
  },
  async announce (dht, o) {
    const q = dht.announce(bin(o.target), pair(o.key), (o.relays || []).map(address))
    await q.finished()
    return { count: q.closestNodes.length }
  },
  async unannounce (dht, o) {
    await dht.unannounce(bin(o.target), pair(o.key))
    return {}
  },
  async lookup (dht, o) {
    const keys = new Set()
    for await (const r of dht.lookup(bin(o.target))) for (const p of r.peers) keys.add(hex(p.publicKey))
    return { values: [...keys].sort() }
  },
  async findPeer (dht, o) {
    const from = []
    const q = dht.findPeer(bin(o.target))
    for await (const r of q) if (r.peer) from.push(text(r.from))
    return { values: from }
  },
  async findNode (dht, o) {
    const q = dht.findNode(bin(o.target))
    await q.finished()
    return { values: q.closestNodes.map(text) }
  },
  // A server that echoes.
  async listen (dht, o) {
    const server = dht.createServer((s) => { s.on('error', () => {}); s.pipe(s) })
    await server.listen(pair(o.key))
    return { value: hex(server.publicKey) }
  }
}

async function main () {
  const o = options()
  const host = '127.0.0.1'
  const nodes = []
  if (o.nodes) {
    const port = 20000 + Math.floor(Math.random() * 10000)
    nodes.push(DHT.bootstrapper(port, host, { host }))
    await nodes[0].fullyBootstrapped()
    while (nodes.length < Number(o.nodes)) {
      const n = new DHT({ host, port: 0, bootstrap: [{ host, port }], ephemeral: false, firewalled: false })
      await n.fullyBootstrapped()
      nodes.push(n)
    }
  } else {
    for (let i = 0; i < Number(o.members || 0); i++) {
      const n = new DHT({ host, port: 0, bootstrap: [address(o.bootstrap)], ephemeral: false, firewalled: false })
      await n.fullyBootstrapped()
      nodes.push(n)
    }
  }
  const bootstrap = o.nodes ? [{ host, port: nodes[0].address().port }] : [address(o.bootstrap)]
  const client = new DHT({ host, bootstrap, ephemeral: true })
  await client.fullyBootstrapped()
  say({ event: 'ready', values: nodes.map((n) => host + ':' + n.address().port) })
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line)
    try {
      say({ event: 'done', ...await orders[order.do](client, order) })
    } catch (e) {
      say({ event: 'error', message: e.code || e.message })
    }
  }
}
main()
