// Shared by the programs here. Each prints one JSON object a line on stdout.
'use strict'
const crypto = require('crypto')
const DHT = require('hyperdht')

const say = (o) => process.stdout.write(JSON.stringify(o) + '\n')

// options parses --name=value and --flag.
function options () {
  const o = {}
  for (const arg of process.argv.slice(2)) {
    const [, name, value] = /^--([a-z-]+)(?:=(.*))?$/.exec(arg) || []
    if (!name) throw new Error('unexpected argument ' + arg)
    o[name] = value === undefined ? true : value
  }
  return o
}

const address = (s) => ({ host: s.split(':')[0], port: Number(s.split(':')[1]) })

// start joins the DHT, with an identity if there is a seed of one byte.
async function start (o) {
  const dht = new DHT({ bootstrap: [address(o.bootstrap)], host: o.host || undefined })
  await dht.fullyBootstrapped()
  const keyPair = DHT.keyPair(o.seed ? Buffer.alloc(32, Number(o.seed)) : undefined)
  return { dht, keyPair }
}

// random returns a function that gives the next n bytes of an endless stream that follows from the seed.
function random (seed) {
  const cipher = crypto.createCipheriv('aes-128-ctr', Buffer.alloc(16, seed), Buffer.alloc(16))
  return (n) => cipher.update(Buffer.alloc(n))
}

process.on('SIGINT', () => process.exit(0))
process.on('SIGTERM', () => process.exit(0))
process.on('unhandledRejection', (e) => { console.error(e); process.exit(1) })

module.exports = { DHT, crypto, say, options, address, start, random }
