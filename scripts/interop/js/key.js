// Prints the public key that belongs to a seed of one byte: {"event":"key","key"}.
//   node key.js --seed=n
'use strict'
const { DHT, say, options } = require('./common')
say({ event: 'key', key: DHT.keyPair(Buffer.alloc(32, Number(options().seed))).publicKey.toString('hex') })
